"""What a rule is given and what it answers: the entrances that a router has, without sockets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from bench.placement_sim.hardware import Hardware
from bench.placement_sim.request import Request, Route
from protocol.messages import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A worker: the `index`th of its role."""

    name: str
    role: Role
    index: int
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a worker says of its load; `num_received`: prompts and streams that it knows of."""

    member: Member
    num_received: int
    num_running: int
    num_waiting: int
    num_waiting_prompts: int
    num_waiting_tokens: int
    context_tokens: int
    num_free_blocks: int


class Rule(Protocol):
    name: str

    def add_member(self, member: Member) -> None: ...

    def note_arrived(self, request: Request) -> None:
        """What is done of a request before it is placed, once: no part of a decision's time."""

    def place_request(self, request: Request, *, now: float) -> Route | None:
        """None: not now, ask again after the next report."""

    def note_placed(self, request: Request, route: Route, *, now: float) -> None: ...

    def note_begun(self, request: Request, route: Route, *, now: float) -> None:
        """Its prompt is being computed apart: its decode worker is told now."""

    def note_report(self, report: Report, *, now: float) -> None: ...

    def note_blocks(
        self, member: Member, kind: Literal["stored", "evicted"], blocks: Sequence[int]
    ) -> None: ...

    def note_first_token(self, request: Request, route: Route, *, now: float) -> None: ...

    def note_ended(self, request: Request, route: Route, *, now: float) -> None: ...
