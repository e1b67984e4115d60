"""A runner without a model: its KV cache holds the tokens themselves.

The next token is a function of all tokens read back from the fake pool through the block table.
A block that is freed too early, shared wrongly or never written shows as a wrong token or as
`UnwrittenSlot`.
"""

from collections.abc import Sequence

import xxhash

from engine.batch import Chunk, SampledToken, SequenceId
from protocol.layout import KvLayout

VOCAB_SIZE = 997


class UnwrittenSlot(Exception):
    """A sequence reads KV that nobody has computed."""


def next_token(tokens: Sequence[int], *, seed: int) -> int:
    """What the fake model says after these tokens."""
    return xxhash.xxh3_64_intdigest(repr((seed, list(tokens))).encode()) % VOCAB_SIZE


def continuation(tokens: Sequence[int], *, seed: int, num_tokens: int) -> list[int]:
    """What an undisturbed run generates."""
    context = list(tokens)
    for _ in range(num_tokens):
        context.append(next_token(context, seed=seed))
    return context[len(tokens) :]


class FakeRunner:
    """Implements `engine.runner.Runner`. `fail_next` steps raise instead of computing; `mute`
    sequences get no number from the model."""

    def __init__(self, *, num_blocks: int, block_tokens: int = 4) -> None:
        self.layout = KvLayout(
            num_layers=1, num_kv_heads=1, head_dim=1, block_tokens=block_tokens, dtype="float32"
        )
        self.num_blocks = num_blocks
        self.pool: list[list[int | None]] = [[None] * block_tokens for _ in range(num_blocks)]
        self.batches: list[tuple[Chunk, ...]] = []
        self.fail_next = 0
        self.mute: set[SequenceId] = set()

    def execute(self, chunks: Sequence[Chunk]) -> dict[SequenceId, SampledToken]:
        self.batches.append(tuple(chunks))
        if self.fail_next:
            self.fail_next -= 1
            raise RuntimeError("the fake model fails")
        for chunk in chunks:
            self.write(chunk.block_table, start=chunk.start, tokens=chunk.token_ids)
        return {
            chunk.sequence: SampledToken(token_id=self._sample(chunk))
            for chunk in chunks
            if chunk.sampling is not None and chunk.sequence not in self.mute
        }

    def write(self, block_table: Sequence[int], *, start: int, tokens: Sequence[int]) -> None:
        """Put KV into the pool, as a forward does and as a fetch does."""
        size = self.layout.block_tokens
        for position, token in enumerate(tokens, start):
            self.pool[block_table[position // size]][position % size] = token

    def read(self, block_table: Sequence[int], *, num_tokens: int) -> list[int]:
        """The tokens whose KV the blocks hold."""
        size = self.layout.block_tokens
        tokens: list[int] = []
        for position in range(num_tokens):
            token = self.pool[block_table[position // size]][position % size]
            if token is None:
                raise UnwrittenSlot(f"position {position} of blocks {list(block_table)}")
            tokens.append(token)
        return tokens

    def _sample(self, chunk: Chunk) -> int:
        assert chunk.sampling is not None
        tokens = self.read(chunk.block_table, num_tokens=chunk.position)
        return next_token(tokens, seed=chunk.sampling.seed)
