"""Does the attention of the projector work? `collamo evaluate --diagnose`."""
