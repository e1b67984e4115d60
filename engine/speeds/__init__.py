"""How fast an engine computes and KV moves: measured, smoothed, and fitted by a few numbers."""
