"""Moves KV blocks between processes. Knows bytes and leases, not models."""
