"""A step computed: its contract, and who computes it on a CPU."""
