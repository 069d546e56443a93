"""Measurements of speed, accuracy and robustness; see README.md. Not part of the installed package."""
