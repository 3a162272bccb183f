"""Recipes, the three training stages, and checkpoints that can be trusted."""
