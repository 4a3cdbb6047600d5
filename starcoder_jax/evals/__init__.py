"""Measuring a model by what it writes."""
