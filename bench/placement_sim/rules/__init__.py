"""Rules that place requests: Baton's, through its real code, and published ones of its peers."""
