"""The only door to Redis: the cluster's workers and blocks, and the responses that clients keep."""
