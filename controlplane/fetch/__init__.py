"""`baton fetch`: a model's files into a cache, resumed, checked, and whole or not there."""
