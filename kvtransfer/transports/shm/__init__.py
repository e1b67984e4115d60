"""Shared memory of one host: the sink copies, and the source may help."""
