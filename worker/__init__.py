"""What the two kinds of worker share: process, service, requests, life, startup, pool."""
