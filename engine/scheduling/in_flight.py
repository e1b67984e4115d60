"""Steps that are launched and not recorded, and the blocks that only they still read.

Pure.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.batch import PENDING, Chunk
from engine.kvcache.prefix_cache import PrefixCache
from engine.sequence import Sequence

STEPS_AHEAD = 2
"""Steps of a sequence that may be launched before the first of them is recorded."""
_STAND_IN = (PENDING,)

Part = tuple[Sequence, int, int]
"""(sequence, start, stop): whose tokens [start, stop) a step computes."""


@dataclass(slots=True)
class _Step:
    parts: list[Part] = field(default_factory=list)
    displaced: list[int] = field(default_factory=list)
    """Blocks that equal ones took the place of while this was the newest step: it, or one before,
    may read them."""


class InFlightSteps:
    """Oldest first."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._steps: deque[_Step] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def displaced(self) -> list[int]:
        """Blocks held here, for no sequence."""
        return [block for step in self._steps for block in step.displaced]

    def begin_step(self) -> None:
        self._steps.append(_Step())

    def add_chunk(self, sequence: Sequence, max_tokens: int) -> Chunk:
        """Its next tokens, in the newest step. Where the next one is sampled by a step that is
        launched already, something stands in for it."""
        start, num_tokens = sequence.num_launched, sequence.num_tokens
        pending = max(0, start - num_tokens + 1)
        stop = start + 1 if pending else min(start + max_tokens, num_tokens)
        asks = stop >= num_tokens and sequence.generates
        sampling = sequence.sampling if asks else None
        constraint = None if sampling is None else sequence.constraint
        table, num_prompt = sequence.block_table, len(sequence.prompt)
        table.cover(start, stop)
        copies = table.copies if start < num_prompt and not sequence.in_flight else ()
        sequence.num_launched = stop
        sequence.in_flight += 1
        self._steps[-1].parts.append((sequence, start, stop))
        return Chunk(
            sequence=sequence.id,
            token_ids=_STAND_IN if pending else sequence.tokens(start, stop),
            start=start,
            block_table=table.blocks,
            sampling=sampling,
            prompt_ids=sequence.prompt_ids,
            outputs=sequence.outputs,
            allowed=None if constraint is None else constraint.allowed,
            num_prompt=num_prompt,
            pending=pending,
            read=sequence.read_rows(start, stop),
            copies=copies,
            adapter=sequence.adapter,
        )

    def pop_oldest_step(self) -> list[Part]:
        """It is over."""
        step = self._steps.popleft()
        self._let_go(step.displaced)
        return step.parts

    def pop_newest_step(self) -> list[Part]:
        """It never came to be launched; those before it are."""
        step = self._steps.pop()
        if self._steps:
            self._steps[-1].displaced += step.displaced
        else:
            self._let_go(step.displaced)
        return step.parts

    def seal_computed(self, sequence: Sequence) -> None:
        """Make the sequence's full, computed blocks findable. Of those that equal ones take the
        place of, let go once no step reads them any more."""
        displaced = sequence.block_table.seal(
            sequence.tokens, sequence.num_computed, in_flight=bool(sequence.in_flight)
        )
        if sequence.in_flight:
            self._steps[-1].displaced += displaced
        else:
            self._let_go(displaced)

    def _let_go(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._cache.let_go(block)
