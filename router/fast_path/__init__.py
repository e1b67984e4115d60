"""Tokens of plain streams from a worker's step to their sockets, in one call of C."""
