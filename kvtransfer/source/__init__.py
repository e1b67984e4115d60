"""The lending side: leases, what of them is written, and the sinks it serves."""
