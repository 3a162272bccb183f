"""`collamo judge`: captions before a language model."""
