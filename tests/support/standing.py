"""Workers as placement sees them, made of few words: an idle, measured worker unless said."""

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from support.words import registration

from protocol.ids import Epoch, WorkerId
from protocol.layout import KvLayout
from protocol.messages import Load, Role, ServedVersion, Speeds, StepModel, TransportUse
from router.placement.cost import Demand
from router.placement.fleet import Fleet, Work
from router.placement.place import Placement, PlacementRefusal, PlacementRules, Preferred, place
from router.placement.prompt import place_prompt

LAYOUT = KvLayout(num_layers=1, num_kv_heads=1, head_dim=125, block_tokens=16, dtype="float32")
"""1,000 bytes a token, 16,000 a block."""
STEP = StepModel(fixed_s=0.002, token_s=1e-4, attended_s=0.0, sequence_s=1e-4)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """10,000 tokens/s, 2 ms a step, 1 GB/s after 2 ms."""

    name: str
    cached: int = 0
    """Tokens of the prompt."""
    waiting: int = 0
    """Prompt tokens in its queue."""
    running: int = 0
    context: int = 0
    free_blocks: int | None = None
    """None: all."""
    num_blocks: int = 1_000
    max_context_tokens: int = 8_192
    max_step_tokens: int = 0
    compat: str = "same"
    revision: str = "revision"
    transports: tuple[str, ...] = ("shm", "tcp")
    kv_address: str = ""
    step: StepModel = STEP
    rate: float = 1e9
    latency_s: float = 0.002
    links: tuple[tuple[str, float, float], ...] = ()
    """Peers from which its fetches have a latency and a rate of their own."""

    @property
    def role(self) -> Role:
        return "prefill" if self.name.startswith("prefill") else "decode"

    def but(self, **changes: Any) -> "Standing":
        return replace(self, **changes)


def fleet_of(*standings: Standing) -> Fleet:
    """Reported at time 0."""
    fleet = Fleet()
    for one in standings:
        told = registration(one.name, role=one.role)
        fleet.add_worker(
            msgspec.structs.replace(
                told,
                epoch=Epoch(7),
                layout=LAYOUT,
                compat=one.compat,
                revision=one.revision,
                num_blocks=one.num_blocks,
                max_context_tokens=one.max_context_tokens,
                max_step_tokens=one.max_step_tokens,
                transports=one.transports,
                kv_address=one.kv_address,
            )
        )
    for slot, one in enumerate(standings):
        _report(fleet, slot, one)
    return fleet


def _report(fleet: Fleet, slot: int, one: Standing) -> None:
    fleet.set_index_slot(slot, slot)
    speeds = Speeds(
        prefill_tokens_per_s=0.0,
        decode_step_s=0.0,
        transfer_bytes_per_s=one.rate,
        transfer_latency_s=one.latency_s,
        step=one.step,
    )
    uses = [
        TransportUse(
            name="tcp", peer=WorkerId(peer), why="", fetches=1, bytes=1,
            bytes_per_s=rate, latency_s=latency_s,
        )
        for peer, latency_s, rate in one.links
    ]  # fmt: skip
    fleet.set_speeds(slot, speeds, uses)
    load = Load(
        running=one.running, waiting=0, waiting_tokens=one.waiting, context_tokens=one.context
    )
    free = one.num_blocks if one.free_blocks is None else one.free_blocks
    work = Work(
        load=load,
        free_share=free / one.num_blocks,
        reported_at_s=0.0,
        queue_s=one.waiting * one.step.token_s,
    )
    fleet.set_work(slot, work)
    fleet.ready[slot] = 1


def version_of(revision: str) -> ServedVersion:
    """What a standing of that revision serves."""
    return msgspec.structs.replace(registration().version, revision=revision)


def depths_of(*standings: Standing) -> NDArray[np.uint32]:
    return np.array([one.cached // LAYOUT.block_tokens for one in standings], np.uint32)


def demand_of(num_tokens: int, max_output_tokens: int = 100) -> Demand:
    return Demand(
        num_tokens=num_tokens, max_output_tokens=max_output_tokens, num_reusable=num_tokens
    )


def placed(
    *standings: Standing,
    num_tokens: int = 2_000,
    max_output_tokens: int = 100,
    now: float = 0.0,
    preferred: Preferred | None = None,
    **rules: Any,
) -> Placement:
    """A long queue is no reason to wait unless `worker_queue_s` is among the rules."""
    found = place(
        fleet_of(*standings),
        demand_of(num_tokens, max_output_tokens),
        depths=depths_of(*standings),
        rules=PlacementRules(**{"worker_queue_s": 1e9} | rules),
        now=now,
        preferred=preferred,
    )
    assert isinstance(found, Placement), found
    return found


def refused(
    *standings: Standing, num_tokens: int = 2_000, max_output_tokens: int = 100, **rules: Any
) -> PlacementRefusal:
    found = place(
        fleet_of(*standings),
        demand_of(num_tokens, max_output_tokens),
        depths=depths_of(*standings),
        rules=PlacementRules(**rules),
        now=0.0,
    )
    assert isinstance(found, PlacementRefusal), found
    return found


def read_alone(*standings: Standing, num_tokens: int, max_output_tokens: int = 0) -> Any:
    """Where a prompt goes that is read and no more."""
    return place_prompt(
        fleet_of(*standings),
        demand_of(num_tokens, max_output_tokens),
        depths=depths_of(*standings),
        now=0.0,
    )


def way(placement: Placement) -> str:
    """`prefill>decode` or `decode`."""
    prefill, decode = placement.prefill, placement.decode
    return f"{prefill}>{decode}" if prefill else decode
