"""The process that computes prompts and serves their KV blocks."""
