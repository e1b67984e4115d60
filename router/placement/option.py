"""What is asked of the options of a request, and what an option is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.placement.cost import Breakdown, Demand

FIRST_TOKENS = 2
"""Room that a prefill worker needs beside the prompt: the first token has to fit, and one more. At
its limit an engine ends a text, and a prefill worker would finish what it is to hand over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionQuery:
    """A request, and what is to be known of the fleet besides its rows."""

    demand: Demand
    open: NDArray[np.uint8]
    """By slot: 1 for workers that may get it, or lend to it."""
    depths: NDArray[np.uint32]
    """Leading blocks of the prompt that are cached, by slot of the prefix index."""
    held: NDArray[np.uint32]
    """The same without what is only hoped for: nobody lends what is still being computed."""
    now: float
    inter_token_target_s: float
    worker_queue_s: float
    kept: tuple[int, int] = (-1, -1)
    """Slots of a prefill and a decode worker of which the best way is told besides; -1 for the
    first: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Slots of the workers, -1 for none: `prefill` of a decode worker alone, `source` of a prompt
    of which nothing is pulled."""

    decode: int
    prefill: int
    source: int
    num_uncached: int
    num_pulled: int
    terms: Breakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`calm`: alone where no running stream waits longer than its target for a token. Ties go by
    name, of decode before prefill. Free ones have a queue shorter than `worker_queue_s` and KV room
    now."""

    has_decode: bool
    has_able: bool
    """A decode worker that can ever hold the request."""
    has_free_pair: bool
    has_free_alone: bool
    has_free_calm: bool
    pair: Option | None
    alone: Option | None
    calm: Option | None
    kept_pair: Option | None
    kept_alone: Option | None
    kept_calm: Option | None
