"""Measurements: each module prints one JSON line with its conditions and appends it to results/."""
