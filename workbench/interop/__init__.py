"""Workbench objects in the shapes that other libraries expect; the one place that imports them."""
