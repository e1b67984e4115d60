"""sglang-router (smg), cache_aware: prefill by an approximate tree of its own placements.

More than 0.3 of the prompt matched: the worker with the longest match; else the one whose tree is
smallest. When loads are apart (max - min > 64 and max > 1.5 min requests): the least loaded.
Decode: the fewest requests. It hears of no evictions; its trees forget the oldest beyond the
workers' own room, which is more than it knows there.
"""

from collections import OrderedDict

import numpy as np

from bench.placement_sim.request import Request, Route
from bench.placement_sim.rule import Member
from bench.placement_sim.rules.directory import Directory
from bench.placement_sim.rules.peer import Peer

MATCH_PART, APART_REQUESTS, APART_RATIO = 0.3, 64, 1.5


class SglangCacheAware(Peer):
    name = "sglang"

    def __init__(self) -> None:
        super().__init__()
        self._directory = Directory()
        self._trees: list[OrderedDict[int, None]] = []
        self._room: list[int | None] = []

    def add_member(self, member: Member) -> None:
        super().add_member(member)
        if member.role == "prefill":
            self._trees.append(OrderedDict())
            self._room.append(member.hardware.num_blocks)

    def place_request(self, request: Request, *, now: float) -> Route | None:
        decode = self.lowest(self.decodes.requests)
        return self.apart(self._prefill(request), decode)

    def note_placed(self, request: Request, route: Route, *, now: float) -> None:
        super().note_placed(request, route, now=now)
        assert route.prefill is not None
        row = self.prefills.row(route.prefill)
        tree, room = self._trees[row], self._room[row]
        for block in reversed(request.blocks):
            tree[block] = None
            tree.move_to_end(block)
        self._directory.store(row, request.blocks)
        while room is not None and len(tree) > room:
            self._directory.evict(row, [tree.popitem(last=False)[0]])

    def _prefill(self, request: Request) -> int:
        loads = self.prefills.requests
        least, most = loads.min(), loads.max()
        if most - least > APART_REQUESTS and most > APART_RATIO * least:
            return self.lowest(loads)
        depths = self._directory.depths(request.blocks, num_workers=self.prefills.num_workers)
        if depths.max() > MATCH_PART * max(1, len(request.blocks)):
            return self.highest(depths.astype(np.float64))
        return self.lowest(np.array([len(tree) for tree in self._trees]))
