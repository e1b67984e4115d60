"""Kernels that an image brings: for which processors they are built, and which runs here."""
