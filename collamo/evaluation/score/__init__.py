"""`collamo score`: a file of predictions against references."""
