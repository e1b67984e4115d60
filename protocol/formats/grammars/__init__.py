"""Grammars that hold an output to calls of given tools, or to an answer, in a format."""
