"""Options of whole fleets: the C kernel, its twin in numpy and a naive search always agree."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.standing import LAYOUT, Standing, depths_of, fleet_of, placed, version_of, way

from protocol.messages import StepModel
from router.placement.cost import (
    COMING_STREAMS,
    EXPECTED_OUTPUT_TOKENS,
    MAX_AGE_S,
    STREAM_PART,
    Demand,
)
from router.placement.kernel import kernel
from router.placement.option import Option, OptionQuery
from router.placement.options import find_options
from router.placement.place import Placement, PlacementRefusal, PlacementRules, Preferred, place
from router.placement.policies import Policy
from router.placement.prompt import place_prompt
from router.placement.sessions import rendezvous
from router.placement.twin import find_options_twin

tokens = st.integers(0, 3_000)
few = st.sampled_from([0, 0, 0, 1, 7])
steps = st.sampled_from(
    [
        StepModel(0.002, 1e-4, 0.0, 1e-4),
        StepModel(0.01, 3e-5, 1e-9, 2e-4),
        StepModel(),
    ]
)
NAMES = [f"{role}-{n}" for role in ("prefill", "decode") for n in range(3)]


@st.composite
def standings(draw: st.DrawFn) -> list[Standing]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    return [draw(standing(name)) for name in names]


def standing(name: str) -> st.SearchStrategy[Standing]:
    link = st.tuples(
        st.sampled_from(NAMES), st.sampled_from([0.0, 0.01]), st.sampled_from([1e7, 1e10])
    )
    return st.builds(
        Standing,
        name=st.just(name),
        cached=tokens,
        waiting=st.sampled_from([0, 0, 500, 40_000]),
        running=few,
        context=st.sampled_from([0, 9_000]),
        free_blocks=st.sampled_from([None, 0, 40, 120]),
        num_blocks=st.just(250),
        max_context_tokens=st.sampled_from([1_000, 4_000]),
        max_step_tokens=st.sampled_from([0, 256]),
        compat=st.sampled_from(["same", "same", "other"]),
        revision=st.sampled_from(["old", "new"]),
        transports=st.sampled_from([("tcp",), ("tcp", "shm"), ("nccl",)]),
        kv_address=st.sampled_from(["", "tcp://lender:1"]),
        step=steps,
        rate=st.sampled_from([0.0, 1e8, 1e9]),
        links=st.lists(link, max_size=2).map(tuple),
    )


demands = st.builds(
    lambda prompt, output, reusable: Demand(
        num_tokens=prompt, max_output_tokens=output, num_reusable=min(prompt, reusable)
    ),
    st.integers(1, 3_000),
    st.integers(2, 300),
    tokens,
)


@given(
    standings(),
    demands,
    st.sampled_from([0.0, 0.3, 30.0]),
    st.sampled_from([0.03, 10.0]),
    st.integers(0, 8),
)
@settings(max_examples=60, deadline=None)
def test_all_three_ways_to_search_find_the_same(
    here: list[Standing], demand: Demand, now: float, target_s: float, num_hoped: int
) -> None:
    fleet = fleet_of(*here)
    fleet.guess_speeds(now=now)
    question = OptionQuery(
        demand=demand,
        open=fleet.ready,
        depths=depths_of(*here),
        held=np.maximum(depths_of(*here), num_hoped) - np.uint32(num_hoped),
        now=now,
        inter_token_target_s=target_s,
        worker_queue_s=1.0,
        kept=(-1, 0),
    )
    twin = find_options_twin(fleet, question)
    naive = _Naive(fleet.rows, question, [one.name for one in here])
    for name in ("pair", "alone", "calm", "kept_pair", "kept_alone", "kept_calm"):
        _assert_same(getattr(twin, name), naive.best(name))
    assert (twin.has_free_pair, twin.has_free_alone) == (naive.free_pair, naive.free_alone)
    if kernel() is None:
        pytest.skip("no C compiler: the twin serves")
    assert find_options(fleet, question) == twin


@given(standings(), demands, st.data())
@settings(max_examples=40, deadline=None)
def test_a_longer_queue_never_makes_a_worker_likelier(
    here: list[Standing], demand: Demand, data: st.DataObject
) -> None:
    before = _place(here, demand)
    longer = data.draw(st.integers(0, len(here) - 1))
    after = list(here)
    after[longer] = replace(here[longer], waiting=here[longer].waiting + 5_000)
    chosen = _place(after, demand)
    if isinstance(before, Placement) and isinstance(chosen, Placement):
        name = here[longer].name
        was_in = name in (before.prefill, before.decode)
        computes = name == (chosen.prefill or chosen.decode)
        assert was_in or not computes


@given(standings(), demands, st.sampled_from(["cost", "round_robin", "least_loaded", "random"]))
@settings(max_examples=60, deadline=None)
def test_nobody_gets_what_it_cannot_hold_or_hand_over(
    here: list[Standing], demand: Demand, policy: str
) -> None:
    placement = _place(here, demand, policy=policy)
    by_name = {one.name: one for one in here}
    total = demand.num_tokens + demand.max_output_tokens
    able = [one for one in here if one.role == "decode" and total <= one.max_context_tokens]
    if not isinstance(placement, Placement):
        assert isinstance(placement, PlacementRefusal)
        assert placement.why == ("saturated" if able else placement.why)
        return
    decode = by_name[placement.decode]
    assert decode in able
    if placement.prefill is not None:
        prefill = by_name[placement.prefill]
        assert prefill.role == "prefill" and demand.num_tokens + 2 <= prefill.max_context_tokens
        assert prefill.compat == decode.compat
        assert set(prefill.transports) & set(decode.transports)
    if placement.prefix_source is not None:
        source = by_name[placement.prefix_source.worker]
        computes = by_name[placement.prefill or placement.decode]
        assert source is not computes and source.kv_address and source.compat == computes.compat
        assert placement.prefix_source.num_tokens % LAYOUT.block_tokens == 0


@given(st.permutations([Standing(name=name) for name in NAMES]))
@settings(max_examples=20)
def test_of_equals_the_first_by_name_is_chosen(here: list[Standing]) -> None:
    assert way(placed(*here)) == "prefill-0>decode-0"


def _place(here: list[Standing], demand: Demand, **rules: object) -> object:
    return place(
        fleet_of(*here),
        demand,
        depths=depths_of(*here),
        rules=PlacementRules(**{"worker_queue_s": 1e9} | rules),  # type: ignore[arg-type]
        now=0.0,
        preferred=Preferred(decode="", prefill=None),  # type: ignore[arg-type]
    )


def _assert_same(found: Option | None, wanted: tuple[float, str, str, float] | None) -> None:
    assert (found is None) == (wanted is None)
    if found is not None and wanted is not None:
        assert math.isclose(found.terms.cost_s, wanted[0], rel_tol=1e-9)
        assert found.num_uncached == wanted[3]


class _Naive:
    """Every option written out for one worker or two, with nothing but numbers of Python."""

    def __init__(self, rows: np.ndarray, question: OptionQuery, names: list[str]) -> None:
        self.question, self.demand = question, question.demand
        self.slots = list(range(len(names)))
        self.names = names
        fields = [name for name in (rows.dtype.names or ()) if not name.startswith("peer")]
        self.rows = [{name: float(rows[name][slot]) for name in fields} for slot in self.slots]
        self.links = [
            {
                int(rows["peers"][slot][i]): (
                    float(rows["peer_latency_s"][slot][i]),
                    float(rows["peer_bytes_per_s"][slot][i]),
                )
                for i in range(int(rows["num_peers"][slot]))
            }
            for slot in self.slots
        ]
        self.masks = [int(rows["transports"][slot]) for slot in self.slots]
        self.cached = [
            min(int(question.depths[slot]) * 16, self.demand.num_reusable) for slot in self.slots
        ]
        self.held = [
            min(int(question.held[slot]) * 16, self.demand.num_reusable) for slot in self.slots
        ]
        self.output = min(self.demand.max_output_tokens, EXPECTED_OUTPUT_TOKENS)
        self.free_pair = self.free_alone = False
        self.found = [*self._alone(), *self._pairs()]

    def best(self, name: str) -> tuple[float, str, str, float] | None:
        kind, kept = name.removeprefix("kept_"), name.startswith("kept_")
        able = [
            option[1:]
            for option in self.found
            if (option[0] == kind or (kind == "alone" and option[0] == "calm"))
            and (not kept or option[2] == self.names[0])
        ]
        return min(able, default=None)

    def _alone(self) -> list[tuple[str, float, str, str, float]]:
        found = []
        total = self.demand.num_tokens + self.demand.max_output_tokens
        for slot in self.slots:
            row = self.rows[slot]
            if not row["is_decode"] or total > row["longest_tokens"]:
                continue
            queue_s, pull_s, compute_s, uncached, free = self._start(slot)
            free = free and self._missing(slot, self.demand.num_tokens + self.output) == 0
            self.free_alone |= free
            chunks = math.ceil(uncached / row["max_step_tokens"])
            step_s, longer_s = self._step_s(slot), self._longer_s(slot)
            compute_beside_s = compute_s + chunks * (step_s - row["fixed_s"])
            first_s = queue_s + pull_s + compute_beside_s + step_s + longer_s
            stalled_s = (compute_s - chunks * row["fixed_s"]) * (row["running"] + COMING_STREAMS)
            others_s = self.output * longer_s * row["running"] + stalled_s
            stream_s = self.output * (step_s + longer_s)
            cost_s = first_s + STREAM_PART * (stream_s + others_s)
            chunk = min(uncached, row["max_step_tokens"])
            longest_s = step_s + chunk * (
                row["token_s"] + self.demand.num_tokens * row["attended_s"]
            )
            calm = not row["running"] or longest_s <= self.question.inter_token_target_s
            found.append(("calm" if calm else "alone", cost_s, self.names[slot], "", uncached))
        return found

    def _pairs(self) -> list[tuple[str, float, str, str, float]]:
        found = []
        total = self.demand.num_tokens + self.demand.max_output_tokens
        for decode, prefill in product(self.slots, self.slots):
            d, p = self.rows[decode], self.rows[prefill]
            roles = d["is_decode"] and not p["is_decode"]
            fits = (
                total <= d["longest_tokens"] and self.demand.num_tokens + 2 <= p["longest_tokens"]
            )
            if not (roles and fits and d["compat"] == p["compat"]):
                continue
            if not self.masks[decode] & self.masks[prefill]:
                continue
            queue_s, pull_s, compute_s, uncached, free = self._start(prefill)
            missing = self._missing(decode, self.demand.num_tokens + self.output)
            self.free_pair |= free and missing == 0
            latency_s, rate = self._link(decode, prefill)
            moved = max(0, self.demand.num_tokens - self.cached[decode])
            last = min(moved, uncached, p["max_step_tokens"])
            hidden_s = compute_s * (1 - min(1, p["max_step_tokens"] / uncached))
            bytes_s = d["token_bytes"] / rate
            transfer_s = latency_s + max(last * bytes_s, moved * bytes_s - hidden_s)
            step_s, longer_s = self._step_s(decode), self._longer_s(decode)
            beside_s = min(d["waiting_tokens"], d["max_step_tokens"]) * d["token_s"]
            room_s = missing * step_s / max(1, d["running"])
            first_s = queue_s + pull_s + compute_s + transfer_s + room_s + beside_s
            stream_s = self.output * (step_s + longer_s)
            others_s = self.output * longer_s * d["running"]
            cost_s = first_s + step_s + longer_s + STREAM_PART * (stream_s + others_s)
            found.append(("pair", cost_s, self.names[decode], self.names[prefill], uncached))
        return found

    def _start(self, slot: int) -> tuple[float, float, float, float, bool]:
        row, n = self.rows[slot], self.demand.num_tokens
        missing = self._missing(slot, n)
        aged = min(self.question.now, row["reported_at_s"] + MAX_AGE_S)
        busy_s = max(0.0, row["busy_until_s"] - aged)
        queue_s = max(busy_s, missing * self._step_s(slot) / max(1, row["running"]))
        uncached = max(1, n - self.cached[slot])
        free = busy_s <= self.question.worker_queue_s and missing == 0
        own = (queue_s, 0.0, self._compute_s(slot, uncached), uncached, free)
        lenders = [
            (-self.held[other], self.rows[other]["waiting_tokens"], self.names[other], other)
            for other in self.slots
            if self.rows[other]["lends"] and self.rows[other]["compat"] == row["compat"]
        ]
        lender = min(lenders)[3] if lenders else slot
        lent = min(self.held[lender], n - 1) // 16 * 16
        if lender == slot or lent <= self.cached[slot]:
            return own
        if not self.masks[lender] & self.masks[slot]:
            return own
        latency_s, rate = self._link(slot, lender)
        pull_s = latency_s + (lent - self.cached[slot]) * row["token_bytes"] / rate
        shown_s, rest = max(0.0, pull_s - queue_s), max(1, n - lent)
        pulled = (queue_s, shown_s, self._compute_s(slot, rest), rest, free)
        return pulled if shown_s + pulled[2] < own[2] else own

    def _compute_s(self, slot: int, uncached: float) -> float:
        row, n = self.rows[slot], self.demand.num_tokens
        attended = (n**2 - (n - uncached) ** 2) / 2
        chunks = math.ceil(uncached / row["max_step_tokens"])
        return chunks * row["fixed_s"] + uncached * row["token_s"] + attended * row["attended_s"]

    def _missing(self, slot: int, needed: int) -> float:
        row = self.rows[slot]
        held = row["pool_tokens"] - row["free_tokens"]
        return max(0.0, needed - row["free_tokens"] - min(self.cached[slot], held))

    def _step_s(self, slot: int) -> float:
        row = self.rows[slot]
        return (
            row["fixed_s"]
            + row["context_tokens"] * row["attended_s"]
            + row["running"] * row["sequence_s"]
        )

    def _longer_s(self, slot: int) -> float:
        row = self.rows[slot]
        context = self.demand.num_tokens + self.output / 2
        return context * row["attended_s"] + row["sequence_s"]

    def _link(self, to: int, peer: int) -> tuple[float, float]:
        row = self.rows[to]
        return self.links[to].get(peer, (row["latency_s"], row["bytes_per_s"]))


@given(
    standings(),
    demands,
    st.sampled_from(["cost", "round_robin", "least_loaded", "random"]),
    st.booleans(),
    st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_what_is_chosen_is_what_a_fleet_of_that_version_alone_would_choose(
    here: list[Standing], demand: Demand, policy: Policy, has_session: bool, turn: int
) -> None:
    """Whoever computes, decodes or lends; of whole fleets the rest might as well not be there, but
    for what is guessed of workers that have measured nothing."""
    own = [one for one in here if one.revision == "new"]
    measured = any(one.rate == 0 or one.step == StepModel() for one in here)
    rules = PlacementRules(policy=policy, worker_queue_s=1e9)
    found = []
    for fleet, depths in ((fleet_of(*here), depths_of(*here)), (fleet_of(*own), depths_of(*own))):
        version = version_of("new")
        preferred = rendezvous("s", fleet, version) if has_session else None
        found.append(
            (
                place(
                    fleet, demand, depths=depths, rules=rules, now=0.0, version=version,
                    preferred=preferred, turn=turn, key="k",
                ),
                place_prompt(fleet, demand, depths=depths, now=0.0, version=version),
            )
        )  # fmt: skip
    names = {one.name for one in own}
    for placement in found[0]:
        if isinstance(placement, Placement):
            source = placement.prefix_source
            chosen = {placement.decode, placement.prefill, source and source.worker} - {None}
            assert chosen <= names
    if not measured:
        assert [_told(one) for one in found[0]] == [_told(one) for one in found[1]]


def _told(found: Placement | PlacementRefusal) -> tuple[object, ...]:
    if isinstance(found, PlacementRefusal):
        return found.why, found.reason
    return way(found), found.cost_s, found.prefix_source and found.prefix_source.worker
