"""One worker's engine in virtual time: prompts in chunks, streams a token a step.

While it computes prompts every step is an event; while there are only streams, time passes as if
steps were infinitely small, until a stream ends or something comes.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from bench.placement_sim.cache import PrefixCache
from bench.placement_sim.clock import Clock
from bench.placement_sim.hardware import Hardware
from bench.placement_sim.request import Journey

ITL_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEvents:
    """Whom to tell."""

    prompt_begun: Callable[[Journey], None]
    prompt_done: Callable[[Journey], None]
    stream_done: Callable[[Journey], None]
    load_changed: Callable[[], None]


@dataclass(slots=True, eq=False, kw_only=True)
class Engine:
    name: str
    clock: Clock
    hardware: Hardware
    cache: PrefixCache
    events: EngineEvents
    step_tokens: int
    busy_s: float = 0.0
    """Spent on steps with a prompt in them."""
    itl: defaultdict[float, float] = field(default_factory=lambda: defaultdict(float))
    """Tokens by how long they took after the one before."""
    _waiting: list[tuple[tuple[int, int], Journey]] = field(default_factory=list)
    """Prompts by urgency: first come, first served of one priority."""
    _running: list[Journey] = field(default_factory=list)
    _joining: list[tuple[tuple[int, int], Journey]] = field(default_factory=list)
    """Streams for which there was no room."""
    _streams: list[tuple[float, int, Journey]] = field(default_factory=list)
    """By the `_progress` at which they end."""
    _progress: float = 0.0
    """Tokens that a stream which was always here would have."""
    _since: float = 0.0
    _step_s: float = 0.0
    """Of the streams alone, since `_since`; 0.0 where no time passes so."""
    _context: float = 0.0
    _in_step: bool = False
    _version: int = 0
    _numbers: "count[int]" = field(default_factory=count)

    def accept_prompt(self, journey: Journey) -> None:
        matched = self.cache.match_prefix(journey.request.blocks)
        journey.num_expected = self._reused(journey, matched)
        heapq.heappush(self._waiting, (journey.urgency, journey))
        self._turn()

    def accept_stream(self, journey: Journey) -> None:
        """Its prompt's KV is here; what is left is all tokens but the first."""
        heapq.heappush(self._joining, (journey.urgency, journey))
        self._turn()

    @property
    def num_running(self) -> int:
        return len(self._running) + len(self._streams)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._joining)

    @property
    def num_waiting_prompts(self) -> int:
        return len(self._waiting)

    @property
    def context_tokens(self) -> int:
        return int(self._context)

    def num_waiting_tokens(self, *, less_cached: bool) -> int:
        """Prompt tokens not yet computed; `less_cached`: nor found here when they came."""
        waiting = sum(
            journey.request.num_tokens - (journey.num_expected if less_cached else 0)
            for _, journey in self._waiting
        )
        return waiting + sum(journey.num_left for journey in self._running)

    def _turn(self) -> None:
        """Something came or went: settle what the streams did, and go on."""
        if self._in_step:
            return
        self._settle()
        self._join_streams()
        chunks = self._fill_step()
        if chunks:
            self._begin_step(chunks)
        else:
            self._flow()
        self.events.load_changed()

    def _settle(self) -> None:
        now = self.clock.now
        if self._step_s:
            self._advance((now - self._since) / self._step_s, self._step_s)
        self._since, self._step_s = now, 0.0
        self._version += 1

    def _advance(self, num_tokens: float, step_s: float) -> None:
        """Every stream has so many tokens more, each of which took `step_s`."""
        self._progress += num_tokens
        self._context += num_tokens * len(self._streams)
        if self._streams:
            self.itl[round(step_s, ITL_DIGITS)] += num_tokens * len(self._streams)
        while self._streams and self._streams[0][0] <= self._progress + 1e-6:
            self._end_stream(heapq.heappop(self._streams)[2])

    def _end_stream(self, journey: Journey) -> None:
        request = journey.request
        self._context -= request.num_tokens + request.num_output
        self._give_back(journey)
        self.events.stream_done(journey)

    def _join_streams(self) -> None:
        while self._joining:
            journey = self._joining[0][1]
            if self.name not in journey.held:
                if not self._take_room(journey, journey.request.num_output):
                    return
                self._seal(journey, len(journey.request.blocks))
            heapq.heappop(self._joining)
            self._add_stream(journey)

    def _add_stream(self, journey: Journey) -> None:
        request = journey.request
        self._context += request.num_tokens + 1
        ends = self._progress + request.num_output - 1
        heapq.heappush(self._streams, (ends, next(self._numbers), journey))

    def _fill_step(self) -> list[tuple[Journey, int]]:
        """The most urgent first: who waits with a higher priority than one that runs begins before
        it goes on."""
        chunks: list[tuple[Journey, int]] = []
        budget = self.step_tokens
        for journey in sorted(self._running, key=lambda one: one.urgency):
            budget = self._begin_prompts(chunks, budget, before=journey.request.priority)
            budget = _add_chunk(chunks, journey, budget)
        self._begin_prompts(chunks, budget, before=None)
        return chunks

    def _begin_prompts(
        self, chunks: list[tuple[Journey, int]], budget: int, *, before: int | None
    ) -> int:
        """Of those that wait, all or those of a lower priority than `before`. What is left of the
        budget."""
        while budget > 0 and self._waiting:
            journey = self._waiting[0][1]
            if before is not None and journey.request.priority >= before:
                break
            if not self._begin_prompt(journey):
                break
            heapq.heappop(self._waiting)
            self._running.append(journey)
            budget = _add_chunk(chunks, journey, budget)
        return budget

    def _begin_prompt(self, journey: Journey) -> bool:
        """Its turn: what is cached now is what it need not compute."""
        output = journey.request.num_output if self.decodes(journey) else 1
        if not self._take_room(journey, output):
            return False
        journey.num_cached = self._reused(journey, journey.held[self.name])
        journey.num_computed = journey.num_cached
        self.events.prompt_begun(journey)
        return True

    def decodes(self, journey: Journey) -> bool:
        """The prompt's stream goes on here."""
        return journey.route is not None and journey.route.prefill is None

    def _reused(self, journey: Journey, num_blocks: int) -> int:
        """The last token is always computed: its logits choose the next."""
        cached = num_blocks * self.hardware.block_tokens
        return min(cached, journey.request.num_tokens - 1)

    def _begin_step(self, chunks: list[tuple[Journey, int]]) -> None:
        attended = sum(num * (journey.num_computed + num / 2) for journey, num in chunks)
        step_s = self.hardware.step_s(
            num_tokens=sum(num for _, num in chunks),
            num_attended=attended + self._context,
            num_sequences=len(self._streams),
        )
        self._in_step = True
        self.busy_s += step_s
        self.clock.call_later(step_s, self._end_step, chunks, step_s)

    def _end_step(self, chunks: list[tuple[Journey, int]], step_s: float) -> None:
        self._in_step = False
        self._since = self.clock.now
        self._advance(1.0, step_s)
        for journey, num in chunks:
            journey.num_computed += num
            self._seal(journey, journey.num_computed // self.hardware.block_tokens)
            if not journey.num_left:
                self._end_prompt(journey)
        self._turn()

    def _end_prompt(self, journey: Journey) -> None:
        self._running.remove(journey)
        journey.first_token_at = self.clock.now
        self.events.prompt_done(journey)
        if not self.decodes(journey):
            return
        if journey.request.num_output > 1:
            self._add_stream(journey)
            return
        self._give_back(journey)
        self.events.stream_done(journey)

    def release_prompt(self, journey: Journey) -> None:
        """Its blocks were fetched, or are not wanted."""
        self._give_back(journey)
        self._turn()

    def _flow(self) -> None:
        if not self._streams:
            return
        self._step_s = self.hardware.step_s(
            num_tokens=0, num_attended=self._context, num_sequences=len(self._streams)
        )
        left = max(0.0, self._streams[0][0] - self._progress)
        self.clock.call_later(left * self._step_s, self._stream_due, self._version)

    def _stream_due(self, version: int) -> None:
        if version == self._version and not self._in_step:
            self._turn()

    def _take_room(self, journey: Journey, num_output: int) -> bool:
        request = journey.request
        depth = self.cache.match_prefix(request.blocks)
        total = -(-(request.num_tokens + num_output) // self.hardware.block_tokens)
        found = request.blocks[:depth]
        if not self.cache.take_room(found, num_needed=total - depth):
            return False
        journey.held[self.name] = depth
        journey.num_private_blocks[self.name] = total - depth
        return True

    def _seal(self, journey: Journey, num_blocks: int) -> None:
        """The prompt's first blocks are computed, or came."""
        before = journey.held[self.name]
        sealed = journey.request.blocks[before:num_blocks]
        self.cache.seal_blocks(sealed)
        journey.held[self.name] += len(sealed)
        journey.num_private_blocks[self.name] -= len(sealed)

    def _give_back(self, journey: Journey) -> None:
        held = journey.request.blocks[: journey.held.pop(self.name)]
        num_private = journey.num_private_blocks.pop(self.name)
        self.cache.give_back(held, num_private=num_private)


def _add_chunk(chunks: list[tuple[Journey, int]], journey: Journey, budget: int) -> int:
    num = min(budget, journey.num_left)
    if num > 0:
        chunks.append((journey, num))
    return budget - num
