"""Runs a table over an output: terminals found, values read as they come, events."""
