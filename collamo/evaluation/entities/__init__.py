"""Chemical entities that captions name, and those that they make up."""
