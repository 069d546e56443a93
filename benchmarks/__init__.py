"""Measurements beside PyTorch; see README.md. No part of the installed package."""
