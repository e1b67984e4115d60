"""From logits to tokens: the rules of a row, the sampler and its twins, log probabilities."""
