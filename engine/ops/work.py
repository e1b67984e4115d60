"""How the attention of a step is cut into work items: by real lengths, on the host.

The context of a sequence is cut into splits of a fixed size, each an item of its own
(Flash-Decoding, Dao et al. 2023): how many there are, and so the order of a row's sums, follows
from the row's own context and from how many tokens its sequence has in the step, never from the
other rows or from the largest context a model takes. A row in one split needs no scratch.
"""

# Shapes: S sequences, G KV groups. S1: one more than sequences, cumulative.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.kvcache.windows import Window

SPLIT_TOKENS = 512
"""Context of one split for up to SPLIT_ROWS tokens of a sequence. Short, or one sequence of 1,024
tokens and 8 KV heads would keep a dozen of a GPU's hundred multiprocessors busy."""
SPLIT_ROWS = 4
"""A chunk of more tokens has splits that are so many times longer: it has as many more tiles, which
keep a GPU as busy, and no more partial results."""
MOST_SLOTS = 8_192
"""Partial results of a layer at a time, a token's each: 134 MB for 32 heads of 128. It is 4 million
tokens of context, more than a pool holds unless sequences share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Sequences `first` .. `last` of a step, whose partial results fit the scratch together."""

    first: int
    last: int
    first_slot: int
    num_slots: int
    joined: bool
    """Whether any row is in several splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWork:
    """What the host knows of a step's items; their places are in `slots_GS1` on the device."""

    passes_G: tuple[tuple[Pass, ...], ...]
    has_decodes: bool
    """Whether a sequence has one token in the step."""
    split_tokens: int
    """SPLIT_TOKENS when it was made."""
    chunk_splits: int
    """Most splits of a sequence with several tokens; 0: there is none."""


def split_size(num_tokens: int) -> int:
    """Context of a split for a sequence with so many tokens in the step."""
    return SPLIT_TOKENS * -(-num_tokens // SPLIT_ROWS)


def most_splits(max_context_tokens: int) -> int:
    """Of a sequence of one token."""
    return max(1, -(-max_context_tokens // SPLIT_TOKENS))


def slots(
    lengths_S: NDArray[np.int64], ends_S: NDArray[np.int64], windows: Sequence[Window]
) -> NDArray[np.int32]:
    """[G, S + 1]: slots before sequence s. A sequence of one token has as many as splits, at least
    one, and they are its items; one of several tokens has one a token and split, and none where
    its context is one split. `ends_S` are contexts after the step."""
    several_S = lengths_S > 1
    has_chunks = bool(several_S.any())
    sizes_S: NDArray[np.int64] | int = SPLIT_TOKENS
    if has_chunks:
        sizes_S = SPLIT_TOKENS * np.maximum(-(-lengths_S // SPLIT_ROWS), 1)
    last_S = (ends_S + (sizes_S - 1)) // sizes_S
    slots_GS1 = np.zeros((len(windows), len(lengths_S) + 1), np.int32)
    for group, window in enumerate(windows):
        splits_S = last_S
        if window is not None:
            unseen_S = ends_S - lengths_S - (window - 1)
            splits_S = last_S - np.maximum(unseen_S, 0) // sizes_S
        splits_S = np.maximum(splits_S, 1) * lengths_S
        if has_chunks:
            splits_S[several_S & (splits_S == lengths_S)] = 0
        np.add.accumulate(splits_S, out=slots_GS1[group, 1:])
    return slots_GS1


def work(lengths_S: NDArray[np.int64], slots_GS1: NDArray[np.int32]) -> AttentionWork:
    """For the lengths and slots of a step of at least one sequence."""
    several_S, splits = lengths_S > 1, 0
    has_chunks = bool(several_S.any())
    if has_chunks:
        splits_GS = np.diff(slots_GS1)[:, several_S] // lengths_S[several_S]
        splits = max(1, int(splits_GS.max()))
    return AttentionWork(
        passes_G=tuple(tuple(_passes(slots_S1, has_chunks)) for slots_S1 in slots_GS1),
        has_decodes=not several_S.all(),
        split_tokens=SPLIT_TOKENS,
        chunk_splits=splits,
    )


def decode_work(num_sequences: int, *, num_groups: int, max_context_tokens: int) -> AttentionWork:
    """Room for every step of so many sequences of one token, as far as MOST_SLOTS go."""
    most = max(num_sequences, min(MOST_SLOTS, num_sequences * most_splits(max_context_tokens)))
    whole = Pass(
        first=0, last=num_sequences, first_slot=0, num_slots=most, joined=most > num_sequences
    )
    return AttentionWork(
        passes_G=((whole,),) * num_groups, has_decodes=True, split_tokens=SPLIT_TOKENS,
        chunk_splits=0,
    )  # fmt: skip


def _passes(slots_S1: NDArray[np.int32], has_chunks: bool) -> Iterator[Pass]:
    """As many sequences each as fit MOST_SLOTS, but at least one."""
    first, num_sequences = 0, len(slots_S1) - 1
    while first < num_sequences:
        start = int(slots_S1[first])
        last = num_sequences
        if int(slots_S1[-1]) - start > MOST_SLOTS:
            fitting = int(np.searchsorted(slots_S1, start + MOST_SLOTS, side="right")) - 1
            last = max(first + 1, fitting)
        num_slots = int(slots_S1[last]) - start
        joined = num_slots > (0 if has_chunks else last - first)
        yield Pass(first=first, last=last, first_slot=start, num_slots=num_slots, joined=joined)
        first = last
