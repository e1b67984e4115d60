"""A runner without a model: its KV cache holds the tokens themselves.

The next token is a function of all tokens read back from the fake pool through the block tables:
those of the KV group that sees most; every other group must show the same as far as its window
reaches. A block that is freed too early, shared wrongly or never written shows as a wrong token,
as `UnwrittenSlot` or as `WrongToken`.
"""

from collections.abc import Sequence

import xxhash

from engine.batch import Chunk, SampledToken, SequenceId
from engine.kvgroups import NO_BLOCK, Window, first_reachable
from protocol.layout import KvLayout

VOCAB_SIZE = 997


class UnwrittenSlot(Exception):
    """A sequence reads KV that nobody has computed, or that it has given back."""


class WrongToken(Exception):
    """Two KV groups of a sequence hold different tokens, or a block of another group."""


def next_token(tokens: Sequence[int], *, seed: int) -> int:
    """What the fake model says after these tokens."""
    return xxhash.xxh3_64_intdigest(repr((seed, list(tokens))).encode()) % VOCAB_SIZE


def continuation(
    tokens: Sequence[int], *, seed: int, num_tokens: int, window: Window = None
) -> list[int]:
    """What an undisturbed run generates, by a model that sees the last `window` tokens."""
    context = list(tokens)
    for _ in range(num_tokens):
        first = first_reachable(len(context) - 1, window)
        context.append(next_token(context[first:], seed=seed))
    return context[len(tokens) :]


class FakeRunner:
    """Implements `engine.runner.Runner`. `fail_next` steps raise instead of computing; `mute`
    sequences get no number from the model."""

    def __init__(
        self, *, num_blocks: int, block_tokens: int = 4, windows: Sequence[Window] = (None,)
    ) -> None:
        """`windows` of the KV groups, those without one first."""
        self.layout = KvLayout(
            num_layers=1,
            num_kv_heads=1,
            head_dim=1,
            block_tokens=block_tokens,
            dtype="float32",
            num_groups=len(windows),
        )
        self.windows = tuple(windows)
        self.num_blocks = num_blocks
        self.pool: list[list[tuple[int, int] | None]] = [
            [None] * block_tokens for _ in range(num_blocks)
        ]
        """Group and token of each slot."""
        self.batches: list[tuple[Chunk, ...]] = []
        self.fail_next = 0
        self.mute: set[SequenceId] = set()

    @property
    def widest(self) -> Window:
        """What the group sees that sees most."""
        return None if None in self.windows else max(w for w in self.windows if w is not None)

    def execute(self, chunks: Sequence[Chunk]) -> dict[SequenceId, SampledToken]:
        self.batches.append(tuple(chunks))
        if self.fail_next:
            self.fail_next -= 1
            raise RuntimeError("the fake model fails")
        for chunk in chunks:
            written = self.write(chunk.block_table, start=chunk.start, tokens=chunk.token_ids)
            assert written == len(chunk.token_ids) * len(self.windows), "a token lacks its block"
        for chunk in chunks:
            self._look(chunk)
        return {
            chunk.sequence: SampledToken(token_id=self._sample(chunk))
            for chunk in chunks
            if chunk.sampling is not None and chunk.sequence not in self.mute
        }

    def write(self, block_table: Sequence[int], *, start: int, tokens: Sequence[int]) -> int:
        """Put KV into the pool, as a forward does and as a fetch does; how many slots, over all
        groups, the table has a block for."""
        size, num_groups, num_written = self.layout.block_tokens, len(self.windows), 0
        for position, token in enumerate(tokens, start):
            for group in range(num_groups):
                block = block_table[position // size * num_groups + group]
                if block != NO_BLOCK:
                    self.pool[block][position % size] = (group, token)
                    num_written += 1
        return num_written

    def read(
        self, block_table: Sequence[int], *, num_tokens: int, start: int = 0, group: int = 0
    ) -> list[int]:
        """The tokens from `start` on whose KV the blocks of a group hold."""
        size = self.layout.block_tokens
        tokens: list[int] = []
        for position in range(start, num_tokens):
            block = block_table[position // size * len(self.windows) + group]
            slot = None if block == NO_BLOCK else self.pool[block][position % size]
            if slot is None:
                raise UnwrittenSlot(
                    f"position {position} of blocks {list(block_table)}, group {group}"
                )
            if slot[0] != group:
                raise WrongToken(f"block {block} is of group {slot[0]}, not {group}")
            tokens.append(slot[1])
        return tokens

    def _look(self, chunk: Chunk) -> None:
        """Every token of the chunk reads all that its windows reach, in every group."""
        starts = [first_reachable(chunk.start, window) for window in self.windows]
        widest = min(starts)
        seen = [
            self.read(chunk.block_table, num_tokens=chunk.position, start=start, group=group)
            for group, start in enumerate(starts)
        ]
        most = seen[starts.index(widest)]
        for start, tokens in zip(starts, seen, strict=True):
            if tokens != most[start - widest :]:
                raise WrongToken(f"{chunk.sequence}: {tokens}, another group has {most}")

    def _sample(self, chunk: Chunk) -> int:
        assert chunk.sampling is not None
        tokens = self.read(
            chunk.block_table,
            num_tokens=chunk.position,
            start=first_reachable(chunk.position - 1, self.widest),
            group=self.windows.index(self.widest),
        )
        return next_token(tokens, seed=chunk.sampling.seed)
