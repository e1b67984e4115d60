"""The C side of the fast path: a table of streams, steps read, events written."""
