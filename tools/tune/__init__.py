"""Launch parameters measured on this GPU: `python -m tools.tune`."""
