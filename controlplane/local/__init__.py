"""All processes of one machine: planned, started, watched, ended together."""
