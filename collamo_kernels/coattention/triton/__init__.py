"""The attention's Triton backend."""
