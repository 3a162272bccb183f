"""Answers of a trained model: to one question, to a file of them."""
