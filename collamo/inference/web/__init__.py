"""A page in the browser around a trained model."""
