"""What is asked of a model without generating: which there are, and its tokens."""
