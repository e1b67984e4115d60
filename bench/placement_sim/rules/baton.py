"""Baton's own placement, through the code that its router runs: candidates, index and all."""

from collections.abc import Sequence
from typing import Literal

import xxhash

from bench.placement_sim.request import Request, Route
from bench.placement_sim.rule import Member, Report
from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import Beat, Blocks, Load, LoadReport, Registration, Sampling, Speeds
from router.placement.fleet import Fleet
from router.placement.place import Placement, PlacementRefusal, PlacementRules
from router.prefix.prefix_index import PrefixIndex
from router.requests.candidates import Candidates
from router.requests.context import RequestContext
from router.requests.events import GenerationRequest
from router.requests.request import RoutedRequest
from router.workers.worker import KnownWorker

COMPAT = "simulated"
EPOCH = Epoch(1)
DEADLINE_S = 1e9
MAX_OUTPUT_TOKENS = 2048
"""What clients allow: the router does not know how long an answer will be."""
UNBOUNDED_BLOCKS = 1 << 20
MAX_CONTEXT_TOKENS = 1 << 18


class Baton:
    name = "baton"

    def __init__(self) -> None:
        self._index = PrefixIndex()
        self._fleet = Fleet()
        self._workers: dict[WorkerId, KnownWorker] = {}
        self._candidates = Candidates(
            index=self._index, fleet=self._fleet, workers=self._workers, rules=PlacementRules()
        )
        self._members: dict[WorkerId, Member] = {}
        self._sequences: dict[WorkerId, int] = {}
        self._hashes: dict[int, bytes] = {}
        self._contexts: dict[int, RequestContext] = {}
        self._placement: Placement | None = None

    def add_member(self, member: Member) -> None:
        known = KnownWorker(_registration(member))
        self._members[known.id], self._workers[known.id] = member, known
        known.join_fleet(self._fleet)
        self._index.follow_worker(known.id, EPOCH)
        self._index.load_snapshot(known.id, EPOCH, sequence=0, packed=b"")

    def note_arrived(self, request: Request) -> None:
        """Its blocks are hashed."""
        self._contexts[request.number] = self._context(request)

    def place_request(self, request: Request, *, now: float) -> Route | None:
        context = self._contexts[request.number]
        placement = self._candidates.place_request(context, now=now)
        if isinstance(placement, PlacementRefusal):
            return None
        self._placement = placement
        source = placement.prefix_source
        return Route(
            prefill=None if placement.prefill is None else self._members[placement.prefill].index,
            decode=self._members[placement.decode].index,
            source=None if source is None else (source.worker, source.num_tokens),
        )

    def note_placed(self, request: Request, route: Route, *, now: float) -> None:
        context = self._contexts[request.number]
        assert self._placement is not None
        self._candidates.note_placed(context, self._placement, now=now)
        first = self._first(route)
        context.routed.begin_attempt(
            "", prefill=None if route.prefill is None else first, decode=self._decode(route),
            remaining_s=DEADLINE_S,
        )  # fmt: skip
        first.note_posted(context.routed.wire_id)

    def note_begun(self, request: Request, route: Route, *, now: float) -> None:
        self._decode(route).note_posted(self._contexts[request.number].routed.wire_id)

    def note_report(self, report: Report, *, now: float) -> None:
        worker = self._workers[WorkerId(report.member.name)]
        if worker.beat is None:
            worker.note_beat(_beat(report), now=now)
        worker.note_load(
            LoadReport(
                num_received=report.num_received,
                running=report.num_running,
                waiting=report.num_waiting,
                waiting_tokens=report.num_waiting_tokens,
                context_tokens=report.context_tokens,
                num_free_blocks=report.num_free_blocks,
            ),
            now=now,
        )

    def note_blocks(
        self, member: Member, kind: Literal["stored", "evicted"], blocks: Sequence[int]
    ) -> None:
        worker = WorkerId(member.name)
        self._sequences[worker] = sequence = self._sequences.get(worker, 0) + 1
        packed = self._names(blocks)
        self._index.apply_event(worker, EPOCH, sequence=sequence, kind=kind, packed=packed, now=0.0)

    def note_first_token(self, request: Request, route: Route, *, now: float) -> None:
        self._first(route).note_heard(self._contexts[request.number].routed.wire_id, 0)

    def note_ended(self, request: Request, route: Route, *, now: float) -> None:
        self._candidates.note_ended(self._contexts.pop(request.number))

    def _first(self, route: Route) -> KnownWorker:
        if route.prefill is None:
            return self._decode(route)
        return self._workers[WorkerId(f"prefill-{route.prefill:04}")]

    def _decode(self, route: Route) -> KnownWorker:
        return self._workers[WorkerId(f"decode-{route.decode:04}")]

    def _names(self, blocks: Sequence[int]) -> bytes:
        for block in blocks:
            if block not in self._hashes:
                self._hashes[block] = xxhash.xxh3_128_digest(block.to_bytes(8, "little"))
        return b"".join([self._hashes[block] for block in blocks])

    def _context(self, request: Request) -> RequestContext:
        """The hashes are those of the trace; of the tokens only their number is looked at."""
        asked = GenerationRequest(
            id=RequestId(str(request.number)),
            token_ids=(0,) * request.num_tokens,
            sampling=Sampling(seed=0, max_tokens=MAX_OUTPUT_TOKENS),
            salt="",
            deadline_s=DEADLINE_S,
        )
        routed = RoutedRequest(request=asked, wire_id=asked.id)
        context = RequestContext(routed=routed, begun_at=0.0, ends_at=DEADLINE_S)
        context.hashes[COMPAT] = self._names(request.blocks)
        return context


def _registration(member: Member) -> Registration:
    hardware = member.hardware
    apart = member.role == "prefill"
    return Registration(
        worker=WorkerId(member.name),
        epoch=EPOCH,
        role=member.role,
        pid=1,
        host="simulated",
        address="tcp://127.0.0.1:1",
        model="simulated",
        compat=COMPAT,
        layout=hardware.layout,
        num_blocks=hardware.num_blocks or UNBOUNDED_BLOCKS,
        max_context_tokens=MAX_CONTEXT_TOKENS,
        transports=("tcp",),
        kv_address="tcp://127.0.0.1:2",
        max_step_tokens=hardware.prefill_step_tokens if apart else hardware.decode_step_tokens,
    )


def _beat(report: Report) -> Beat:
    hardware = report.member.hardware
    step = hardware.step
    return Beat(
        epoch=EPOCH,
        state="ready",
        blocks=Blocks(
            total=hardware.num_blocks or UNBOUNDED_BLOCKS,
            free=report.num_free_blocks,
            cached=0,
            leased=0,
        ),
        load=Load(running=0, waiting=0, waiting_tokens=0),
        speeds=Speeds(
            prefill_tokens_per_s=1 / step.token_s,
            decode_step_s=step.fixed_s + 8 * step.sequence_s,
            transfer_bytes_per_s=hardware.bytes_per_s,
            transfer_latency_s=hardware.latency_s,
            step=step,
        ),
        transports_used=(),
    )
