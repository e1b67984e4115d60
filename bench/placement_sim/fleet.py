"""A router and its workers in virtual time: from an arrival to its last token.

A first token reaches the client when its prompt is computed; the second waits for the hand-over.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from bench.placement_sim.cache import PrefixCache
from bench.placement_sim.clock import Clock
from bench.placement_sim.engine import Engine, EngineEvents
from bench.placement_sim.hardware import Hardware
from bench.placement_sim.link import Card, book_transfer
from bench.placement_sim.queue import FirstCome, JourneyQueue
from bench.placement_sim.request import Journey, Request
from bench.placement_sim.rule import Member, Report, Rule
from protocol.messages import Role


@dataclass(slots=True, eq=False)
class _Worker:
    member: Member
    engine: Engine
    card: Card = field(default_factory=Card)
    num_received: int = 0
    num_landing: int = 0
    """Streams whose KV is on its way."""
    pulling: dict[int, int] = field(default_factory=dict)
    """Tokens left to compute of prompts whose beginning is on its way, by request number."""
    is_telling: bool = False
    came_at: float = 0.0
    busy_before_s: float = 0.0
    """Its engine's `busy_s` when the last of the fleet came."""


class Fleet:
    """`starts_at`: when a worker of that name comes; 0.0 for all others."""

    def __init__(
        self,
        rule: Rule,
        *,
        hardware: Hardware,
        num_prefill: int,
        num_decode: int,
        less_cached: bool = True,
        late: dict[str, float] | None = None,
        queue: JourneyQueue | None = None,
    ) -> None:
        self.clock = Clock()
        self.journeys: list[Journey] = []
        self.decision_s: list[float] = []
        self.num_queued = 0
        self._rule = rule
        self._hardware = hardware
        self._less_cached = less_cached
        self._queue = queue or FirstCome()
        self._begun_at: dict[int, float] = {}
        self.prefills = [self._worker("prefill", i) for i in range(num_prefill)]
        self.decodes = [self._worker("decode", i) for i in range(num_decode)]
        self._by_name = {w.member.name: w for w in (*self.prefills, *self.decodes)}
        for worker in self._by_name.values():
            when = (late or {}).get(worker.member.name, 0.0)
            self.clock.call_at(when, self._join, worker)

    def run(self, requests: Iterable[Request]) -> None:
        """Serve them all to their ends."""
        for request in requests:
            self.clock.call_at(request.arrives_at, self._arrive, request)
        self.clock.run()
        left = self._queue.head(now=self.clock.now)
        assert left is None, f"request {left} was never placed"

    @property
    def workers(self) -> list[_Worker]:
        return [*self.prefills, *self.decodes]

    def _worker(self, role: Role, index: int) -> _Worker:
        name = f"{role}-{index:04}"
        member = Member(name=name, role=role, index=index, hardware=self._hardware)
        tell = partial(self._tell_blocks, member)
        apart = role == "prefill"
        engine = Engine(
            name=name,
            clock=self.clock,
            hardware=self._hardware,
            cache=PrefixCache(num_blocks=self._hardware.num_blocks, tell=tell),
            step_tokens=(
                self._hardware.prefill_step_tokens if apart else self._hardware.decode_step_tokens
            ),
            events=EngineEvents(
                prompt_begun=self._prompt_begun,
                prompt_done=self._prompt_done,
                stream_done=self._end,
                load_changed=partial(self._load_changed, name),
            ),
        )
        return _Worker(member, engine)

    def _join(self, worker: _Worker) -> None:
        worker.came_at = self.clock.now
        for each in self.workers:
            each.busy_before_s = each.engine.busy_s
        self._rule.add_member(worker.member)
        self._send_report(worker)

    def _arrive(self, request: Request) -> None:
        journey = Journey(request=request)
        self.journeys.append(journey)
        self._rule.note_arrived(request)
        if self._queue.must_wait(journey) or not self._place(journey):
            self.num_queued += 1
            self._queue.add(journey, now=self.clock.now)

    def _place(self, journey: Journey) -> bool:
        request, now = journey.request, self.clock.now
        begun = time.thread_time()
        route = self._rule.place_request(request, now=now)
        self.decision_s.append(time.thread_time() - begun)
        if route is None:
            return False
        journey.route, journey.placed_at = route, now
        self._rule.note_placed(request, route, now=now)
        first = (
            self.decodes[route.decode] if route.prefill is None else self.prefills[route.prefill]
        )
        self.clock.call_later(self._hardware.message_s, self._receive, first, journey)
        return True

    def _receive(self, worker: _Worker, journey: Journey) -> None:
        worker.num_received += 1
        route = journey.route
        assert route is not None
        if route.source is None or not self._pull(worker, journey, *route.source):
            worker.engine.accept_prompt(journey)

    def _pull(self, worker: _Worker, journey: Journey, name: str, num_tokens: int) -> bool:
        source, blocks = self._by_name[name], journey.request.blocks
        has = min(source.engine.cache.match_prefix(blocks), num_tokens // self._block_tokens)
        lacks = has - worker.engine.cache.match_prefix(blocks)
        if lacks <= 0:
            return False
        journey.num_pulled = lacks * self._block_tokens
        left = journey.request.num_tokens - has * self._block_tokens
        worker.pulling[journey.request.number] = max(1, left)
        now = self.clock.now
        landed_at = book_transfer(
            source.card, worker.card, self._hardware, num_tokens=journey.num_pulled,
            begins_at=now, computed_at=now, last_tokens=0,
        )  # fmt: skip
        self.clock.call_at(landed_at, self._land_pull, worker, journey, has)
        return True

    def _land_pull(self, worker: _Worker, journey: Journey, num_blocks: int) -> None:
        del worker.pulling[journey.request.number]
        worker.engine.cache.add_idle(journey.request.blocks[:num_blocks])
        worker.engine.accept_prompt(journey)

    @property
    def _block_tokens(self) -> int:
        return self._hardware.block_tokens

    def _prompt_begun(self, journey: Journey) -> None:
        route = journey.route
        assert route is not None
        self._begun_at[journey.request.number] = self.clock.now
        if route.prefill is not None and journey.request.num_output > 1:
            self.clock.call_later(self._hardware.message_s, self._hear_begun, journey)

    def _hear_begun(self, journey: Journey) -> None:
        """The router tells the decode worker."""
        route = journey.route
        assert route is not None
        self._rule.note_begun(journey.request, route, now=self.clock.now)
        decode = self.decodes[route.decode]
        self.clock.call_later(self._hardware.message_s, self._expect, decode)

    def _expect(self, decode: _Worker) -> None:
        decode.num_received += 1
        decode.num_landing += 1
        self._load_changed(decode.member.name)

    def _prompt_done(self, journey: Journey) -> None:
        request, route = journey.request, journey.route
        assert route is not None
        later = self._hardware.message_s
        self.clock.call_later(later, self._hear_first_token, journey)
        begun_at = self._begun_at.pop(request.number)
        if route.prefill is None:
            return
        prefill, decode = self.prefills[route.prefill], self.decodes[route.decode]
        if request.num_output == 1:
            self.clock.call_later(0.0, prefill.engine.release_prompt, journey)
            self._end(journey)
            return
        there = decode.engine.cache.match_prefix(request.blocks) * self._block_tokens
        landed_at = book_transfer(
            prefill.card, decode.card, self._hardware,
            num_tokens=request.num_tokens - min(there, request.num_tokens),
            begins_at=begun_at, computed_at=self.clock.now,
            last_tokens=self._hardware.prefill_step_tokens,
        )  # fmt: skip
        self.clock.call_at(landed_at, self._land, prefill, decode, journey)

    def _land(self, prefill: _Worker, decode: _Worker, journey: Journey) -> None:
        decode.num_landing -= 1
        prefill.engine.release_prompt(journey)
        decode.engine.accept_stream(journey)

    def _hear_first_token(self, journey: Journey) -> None:
        assert journey.route is not None
        self._rule.note_first_token(journey.request, journey.route, now=self.clock.now)

    def _end(self, journey: Journey) -> None:
        journey.ended_at = self.clock.now
        self.clock.call_later(self._hardware.message_s, self._hear_end, journey)

    def _hear_end(self, journey: Journey) -> None:
        assert journey.route is not None
        self._rule.note_ended(journey.request, journey.route, now=self.clock.now)
        self._queue.note_ended(journey)

    def _tell_blocks(
        self, member: Member, kind: Literal["stored", "evicted"], blocks: Sequence[int]
    ) -> None:
        delay_s = self._hardware.event_s
        self.clock.call_later(delay_s, self._rule.note_blocks, member, kind, blocks)

    def _load_changed(self, name: str) -> None:
        worker = self._by_name[name]
        if not worker.is_telling:
            worker.is_telling = True
            self.clock.call_later(self._hardware.report_s, self._send_report, worker)

    def _send_report(self, worker: _Worker) -> None:
        worker.is_telling = False
        engine = worker.engine
        num_blocks = self._hardware.num_blocks or 1 << 20
        report = Report(
            member=worker.member,
            num_received=worker.num_received,
            num_running=engine.num_running,
            num_waiting=engine.num_waiting + worker.num_landing + len(worker.pulling),
            num_waiting_prompts=engine.num_waiting_prompts + len(worker.pulling),
            num_waiting_tokens=(
                engine.num_waiting_tokens(less_cached=self._less_cached)
                + sum(worker.pulling.values())
            ),
            context_tokens=engine.context_tokens,
            num_free_blocks=num_blocks - engine.cache.num_held,
        )
        self.clock.call_later(self._hardware.message_s, self._hear_report, report)

    def _hear_report(self, report: Report) -> None:
        self._rule.note_report(report, now=self.clock.now)
        now = self.clock.now
        while (head := self._queue.head(now=now)) is not None and self._place(head):
            self._queue.release(head, now=now)
