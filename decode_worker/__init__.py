"""The process that fetches KV blocks and generates tokens."""
