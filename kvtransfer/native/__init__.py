"""The C loops: copy and sum, and TCP flows."""
