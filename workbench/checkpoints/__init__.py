"""A checkpoint by name → a folder that can be loaded safely: found, checked, decompressed; no weights are loaded."""
