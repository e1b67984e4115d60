"""What stands around a measured router: simulated engines, mock workers, and its clients."""
