"""How fast an engine computes: measured, smoothed, and fitted by a few numbers."""
