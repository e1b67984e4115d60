"""A checkpoint's files to weights: names, shards, experts, and what each parameter takes of
them."""
