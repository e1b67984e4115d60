"""The HTTP process, free of torch: parses, places and streams requests."""
