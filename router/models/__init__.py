"""The models that are served: their texts, whom a request is for, and names for others."""
