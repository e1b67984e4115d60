"""Which of several a request is answered by: the same for equal keys, of every router. Pure."""

from collections.abc import Mapping
from math import log

import xxhash

_RANGE = float(1 << 64)


def weighted_choice(key: str, weights: Mapping[str, float]) -> str:
    """One of the names, each for as great a part of all keys as its weight is of all weights, of
    which one at least is positive. When weights change, only keys that must move do (weighted
    rendezvous hashing: Thaler and Ravishankar 1998, with the scores of Schindelhauer and
    Schomaker 2005)."""
    likely = {name: weight for name, weight in weights.items() if weight > 0}
    return min(sorted(likely), key=lambda name: -log(_uniform(key, name)) / likely[name])


def _uniform(key: str, name: str) -> float:
    """In (0, 1)."""
    return (xxhash.xxh3_64_intdigest(f"{name}\0{key}".encode("utf-8", "replace")) + 0.5) / _RANGE
