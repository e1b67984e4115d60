"""The fetching side: a fetch from its request to its landing, and the links it uses."""
