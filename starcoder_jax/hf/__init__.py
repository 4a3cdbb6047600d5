"""Hugging Face checkpoints: their configuration, names, layouts and files."""
