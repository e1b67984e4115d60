"""Rules that place requests: Baton's own, through its real code, and published ones of its peers."""
