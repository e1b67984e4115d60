"""The HTTP process: parses, places and streams requests. Never imports torch."""
