"""From logits to tokens: rules of a row, grammars and masks, samplers, log probabilities."""
