"""Answers of one form as grammars: JSON by a schema, a pattern, a choice, a client's grammar."""
