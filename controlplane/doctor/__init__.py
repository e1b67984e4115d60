"""`baton doctor`: what would move KV on this machine and between two, and why nothing faster."""
