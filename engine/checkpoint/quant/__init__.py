"""Formats of weights with fewer bits than they are computed in, a file each."""
