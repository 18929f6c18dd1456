"""Files → documents → chunks, each with its place."""
