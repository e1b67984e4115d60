"""Runs the other processes on one machine, and the baton command."""
