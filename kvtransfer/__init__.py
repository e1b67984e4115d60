"""Moves KV blocks between processes: knows bytes and leases, not models."""
