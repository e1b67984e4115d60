"""A runner without a model: its KV cache holds the tokens themselves.

The next token is a function of all tokens read back from the fake pool through the block tables,
and of what is allowed:
those of the KV group that sees most; every other group must show the same as far as its window
reaches. A block that is freed too early, shared wrongly or never written shows as a wrong token,
as `UnwrittenSlot` or as `WrongToken`.
"""

from array import array
from collections import deque
from collections.abc import MutableSequence, Sequence
from typing import Literal

import msgspec
import numpy as np
import xxhash

from engine.batch import (
    PENDING,
    Chunk,
    ReadRows,
    RowsRead,
    SampledToken,
    ScoredRows,
    SequenceId,
    SummedRows,
    Words,
)
from engine.kvcache.windows import NO_BLOCK, Window, first_reachable
from protocol.layout import KvLayout
from protocol.readings import TokenScore

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


def _read(chunk: Chunk, read: ReadRows) -> RowsRead:
    """As likely as they are late, or the sum of their ids."""
    if read.targets is None:
        ids = [chunk.token_ids[row] for row in read.rows]
        return SummedRows(num_rows=len(ids), values=array("d", [sum(ids)]))
    places = zip(read.rows, read.targets, strict=True)
    return ScoredRows(
        scores=tuple(
            TokenScore(token_id=target, logprob=-float(chunk.start + row + 1), rank=1, top=())
            for row, target in places
        )
    )


class StaleBlock(Exception):
    """A block got new contents while a launched step refers to it."""


class FakeStep:
    """Implements `engine.runner.contract.Launched`."""

    def __init__(self, runner: "FakeRunner", chunks: Sequence[Chunk]) -> None:
        self._runner = runner
        self.chunks = tuple(chunks)
        self.generations = [runner.generations_of(chunk) for chunk in chunks]
        self.sampled: dict[SequenceId, Sequence[SampledToken]] = {}
        self.garbage: set[SequenceId] = set()
        """Sequences of which an earlier step has failed: what this one computes is nothing."""
        self.error: Exception | None = None

    def tokens(self) -> dict[SequenceId, Sequence[SampledToken]]:
        self._runner.finish(self)
        if self.error is not None:
            raise self.error
        return self.sampled

    def readings(self) -> dict[SequenceId, RowsRead]:
        return {chunk.sequence: _read(chunk, chunk.read) for chunk in self.chunks if chunk.read}


class FakeRunner:
    """Implements `engine.runner.contract.Runner`.

    A step is computed as late as may be: when its tokens are read. `fail_next` launches
    and `fail_tokens` steps raise instead of computing, and so does, when it is launched or when its
    tokens are read, every step with a sequence in `poison`; `mute` sequences get no number from
    the model. With `generations` the runner checks that no block changes hands under a launched
    step.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_tokens: int = 4,
        windows: Sequence[Window] = (None,),
        depth: int = 1,
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
        self.depth = depth
        self.pool: list[list[tuple[int, int] | None]] = [
            [None] * block_tokens for _ in range(num_blocks)
        ]
        """Group and token of each slot."""
        self.generations: MutableSequence[int] = [0] * num_blocks
        self.batches: list[tuple[Chunk, ...]] = []
        self.fail_next = 0
        self.fail_tokens = 0
        self.poison: dict[SequenceId, Literal["launch", "tokens"]] = {}
        self.mute: set[SequenceId] = set()
        self._stream: deque[FakeStep] = deque()
        """Steps whose tokens nobody has read, oldest first."""
        self._newest: dict[SequenceId, tuple[int, int]] = {}
        """Position and id of each sequence's newest token, as in a device's buffer."""

    @property
    def widest(self) -> Window:
        """What the group sees that sees most."""
        return None if None in self.windows else max(w for w in self.windows if w is not None)

    @property
    def num_in_flight(self) -> int:
        return len(self._stream)

    def launch(self, chunks: Sequence[Chunk]) -> FakeStep:
        assert chunks, "a step of nothing"
        assert len(self._stream) < self.depth, "more steps are launched than may be"
        if self.fail_next or self._is_poisoned(chunks, "launch"):
            self.fail_next = max(0, self.fail_next - 1)
            raise RuntimeError("the fake model fails")
        for chunk in chunks:
            self._check_pending(chunk)
        step = FakeStep(self, [own_copy(chunk) for chunk in chunks])
        self.batches.append(step.chunks)
        self._stream.append(step)
        return step

    def finish(self, step: FakeStep) -> None:
        assert self._stream and self._stream[0] is step, "tokens are read out of order, or twice"
        self._compute(step)
        self._stream.popleft()

    def generations_of(self, chunk: Chunk) -> list[int]:
        """Of the blocks that the chunk sees."""
        size, num_groups = self.layout.block_tokens, len(self.windows)
        rows = [first_reachable(chunk.start, window) // size for window in self.windows]
        return [
            self.generations[block]
            for place, block in enumerate(chunk.block_table)
            if block != NO_BLOCK and place // num_groups >= rows[place % num_groups]
        ]

    def _is_poisoned(self, chunks: Sequence[Chunk], where: str) -> bool:
        return any(self.poison.get(chunk.sequence) == where for chunk in chunks)

    def _check_pending(self, chunk: Chunk) -> None:
        """What nobody has read is waited for by that name, and never where it must be seen."""
        earlier = [c for step in self._stream for c in step.chunks if c.sequence == chunk.sequence]
        num_pending = sum(1 for c in earlier if c.sampling is not None)
        assert chunk.pending == num_pending
        assert (tuple(chunk.token_ids) == (PENDING,)) == bool(num_pending)
        assert not earlier or earlier[-1].position == chunk.start
        if num_pending and (s := chunk.sampling) is not None:
            assert s.grammar is None

    def _compute(self, step: FakeStep) -> None:
        if self.fail_tokens or self._is_poisoned(step.chunks, "tokens"):
            self.fail_tokens = max(0, self.fail_tokens - 1)
            step.error = RuntimeError("the fake model fails")
            for later in self._stream:
                later.garbage.update(chunk.sequence for chunk in step.chunks)
            return
        for chunk, generations in zip(step.chunks, step.generations, strict=True):
            if self.generations_of(chunk) != generations:
                raise StaleBlock(f"{chunk.sequence}: one of {list(chunk.block_table)}")
            if chunk.sequence not in step.garbage:
                self._compute_chunk(step, chunk)

    def _compute_chunk(self, step: FakeStep, chunk: Chunk) -> None:
        tokens = chunk.token_ids
        if chunk.pending:
            position, newest = self._newest[chunk.sequence]
            assert position == chunk.start, "the stream has not sampled this token"
            tokens = (newest,)
        written = self.write(chunk.block_table, start=chunk.start, tokens=tokens)
        assert written == len(tokens) * len(self.windows), "a token lacks its block"
        self._look(chunk)
        if chunk.sampling is None:
            return
        token_id = self._sample(chunk)
        if token_id is None:
            return
        self._newest[chunk.sequence] = chunk.position, token_id
        if chunk.sequence not in self.mute:
            step.sampled[chunk.sequence] = (SampledToken(token_id=token_id),)

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
        """Every token of the chunk reads all that its windows show it, in every group."""
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

    def _sample(self, chunk: Chunk) -> int | None:
        """None: no token is allowed."""
        assert chunk.sampling is not None
        tokens = self.read(
            chunk.block_table,
            num_tokens=chunk.position,
            start=first_reachable(chunk.position - 1, self.widest),
            group=self.windows.index(self.widest),
        )
        token_id = next_token(tokens, seed=chunk.sampling.seed)
        if chunk.allowed is None:
            return token_id
        allowed = allowed_ids(chunk.allowed.words())
        return allowed[token_id % len(allowed)] if allowed else None


def allowed_ids(words: Words) -> list[int]:
    """Of a mask, ascending."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return [int(token_id) for token_id in np.flatnonzero(bits)]


def own_copy(chunk: Chunk) -> Chunk:
    """As a runner must take it: the lists are the scheduler's again after the launch."""
    return msgspec.structs.replace(
        chunk, block_table=tuple(chunk.block_table), outputs=tuple(chunk.outputs)
    )
