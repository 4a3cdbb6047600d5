"""Trains, tunes, evaluates and documents the StarCoder family of code models."""
