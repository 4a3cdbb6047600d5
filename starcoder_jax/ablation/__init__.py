"""Ablations: a recipe, a grid of changes to it, several seeds, and what can be said of them."""
