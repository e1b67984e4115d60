"""What a placement knew of caches that hold the beginning of its prompt."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPrefix:
    """Leading tokens of a prompt, in whole blocks, at least one token less than all."""

    num_predicted_tokens: int
    """In the cache of the worker that was to compute it, as the index had it."""
    num_held_tokens: int
    """In the cache of whichever worker has most of it."""
    num_seen_tokens: int
    """In any prompt before, as far as is remembered (`SeenBlocks`), or held by anybody: what a
    cache without a bound would have had."""
