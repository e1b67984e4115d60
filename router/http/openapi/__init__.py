"""The API described by itself: every path with its request, its answer and an example."""
