"""The models that are served: their texts, which one a request is for, and names that stand for others."""
