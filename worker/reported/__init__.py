"""What a worker tells its routers of itself: its load, and how fast KV comes to it."""
