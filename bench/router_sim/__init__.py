"""What stands around a router that is measured: simulated engines, mock workers, and its clients."""
