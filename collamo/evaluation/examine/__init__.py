"""`collamo evaluate`: a checkpoint before the questions of a split."""
