"""Views in JupyterLab. They hold no logic: they call the functions that a script calls."""
