"""What all HTTP APIs of this router share: bodies read, errors told, requests ready to dispatch."""
