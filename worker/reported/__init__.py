"""What a worker tells its routers of itself, and whether they know it."""
