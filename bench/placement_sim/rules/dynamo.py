"""Dynamo's router: prefill then decode, each the cheapest by its cost in blocks.

Cost = max(blocks to prefill there + blocks of this prompt - overlap, 0) + blocks active there, all
by the router's own account; overlap by events, of whole weight; for decode none. Temperature 0.
Prefill is left out by `isl_bounding` alone: less than 2,048 tokens lacking on the decode worker and
less than 0.7 of the prompt. `isl_or_load` would need a threshold of its load that is not published.
"""

import numpy as np
from numpy.typing import NDArray

from bench.placement_sim.request import Request, Route
from bench.placement_sim.rule import Member
from bench.placement_sim.rules.peer import Peer

BOUND_TOKENS, BOUND_PART = 2048, 0.7


class Dynamo(Peer):
    name = "dynamo"

    def __init__(self) -> None:
        super().__init__()
        self._to_prefill: NDArray[np.float64] = np.zeros(0)
        self._on_prefill: NDArray[np.float64] = np.zeros(0)
        self._on_decode: NDArray[np.float64] = np.zeros(0)
        self._given: dict[int, float] = {}

    def add_member(self, member: Member) -> None:
        super().add_member(member)
        if member.role == "prefill":
            self._to_prefill = np.append(self._to_prefill, 0.0)
            self._on_prefill = np.append(self._on_prefill, 0.0)
        else:
            self._on_decode = np.append(self._on_decode, 0.0)

    def place_request(self, request: Request, *, now: float) -> Route | None:
        overlap = self.prefills.depths(request.blocks)
        blocks = self._blocks(request)
        lacking = np.maximum(self._to_prefill + blocks - overlap, 0.0)
        prefill = self.lowest(lacking + self._on_prefill)
        decode = self.lowest(self._on_decode)
        if self._is_bounded(request, int(self.decodes.depths(request.blocks)[decode])):
            return self.alone(decode)
        self._given[request.number] = blocks - float(overlap[prefill])
        return self.apart(prefill, decode)

    def note_placed(self, request: Request, route: Route, *, now: float) -> None:
        super().note_placed(request, route, now=now)
        blocks = self._blocks(request)
        self._on_decode[self.decodes.row(route.decode)] += blocks
        if route.prefill is not None:
            row = self.prefills.row(route.prefill)
            self._to_prefill[row] += self._given[request.number]
            self._on_prefill[row] += blocks

    def note_first_token(self, request: Request, route: Route, *, now: float) -> None:
        super().note_first_token(request, route, now=now)
        if route.prefill is not None:
            row = self.prefills.row(route.prefill)
            self._to_prefill[row] -= self._given.pop(request.number)
            self._on_prefill[row] -= self._blocks(request)

    def note_ended(self, request: Request, route: Route, *, now: float) -> None:
        super().note_ended(request, route, now=now)
        self._on_decode[self.decodes.row(route.decode)] -= self._blocks(request)

    def _is_bounded(self, request: Request, depth: int) -> bool:
        lacking = request.num_tokens * (1 - depth / max(1, len(request.blocks)))
        return lacking < BOUND_TOKENS and lacking / request.num_tokens < BOUND_PART

    @staticmethod
    def _blocks(request: Request) -> float:
        return float(len(request.blocks) + 1)
