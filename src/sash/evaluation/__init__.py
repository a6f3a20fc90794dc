"""Measures of what a model reads and writes."""
