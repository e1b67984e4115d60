"""llm-d's scheduler with its profiles for prefill and decode and its precise prefix index.

Scorers and weights of its precise configuration: prefix 2 (matched blocks / blocks of the prompt),
queue 1 ((max - q) / (max - min) of the waiting prompts that workers report), memory 1 (1 - used).
Decode is picked first; prefill only if decode lacks at least `NON_CACHED_TOKENS` of the prompt.
Both take the highest score. Its speculative entries (off by default there) are on: a placed
prompt counts as cached for 2 s.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.placement_sim.request import Request, Route
from bench.placement_sim.rules.directory import Directory
from bench.placement_sim.rules.peer import Peer
from bench.placement_sim.rules.view import View

PREFIX_WEIGHT, QUEUE_WEIGHT, MEMORY_WEIGHT = 2.0, 1.0, 1.0
NON_CACHED_TOKENS = 16
SPECULATIVE_S = 2.0


class LlmD(Peer):
    name = "llm_d"

    def __init__(self) -> None:
        super().__init__()
        self._hoped = {"prefill": Directory(), "decode": Directory()}
        self._hopes: deque[tuple[float, str, int, Sequence[int]]] = deque()

    def place_request(self, request: Request, *, now: float) -> Route | None:
        self._forget(now)
        depths = self._depths(self.decodes, "decode", request)
        decode = self.highest(self._scores(self.decodes, depths, request))
        block_tokens = request.num_tokens / max(1, len(request.blocks))
        if request.num_tokens - depths[decode] * block_tokens < NON_CACHED_TOKENS:
            return self.alone(decode)
        depths = self._depths(self.prefills, "prefill", request)
        return self.apart(self.highest(self._scores(self.prefills, depths, request)), decode)

    def note_placed(self, request: Request, route: Route, *, now: float) -> None:
        super().note_placed(request, route, now=now)
        self._hope("decode", self.decodes.row(route.decode), request, now)
        if route.prefill is not None:
            self._hope("prefill", self.prefills.row(route.prefill), request, now)

    def _scores(
        self, view: View, depths: NDArray[np.int64], request: Request
    ) -> NDArray[np.float64]:
        waiting = view.waiting
        spread = max(1, waiting.max() - waiting.min())
        queue = (waiting.max() - waiting) / spread if waiting.any() else np.ones(view.num_workers)
        prefix = depths / max(1, len(request.blocks))
        memory = 1 - view.used
        total: NDArray[np.float64] = (
            PREFIX_WEIGHT * prefix + QUEUE_WEIGHT * queue + MEMORY_WEIGHT * memory
        )
        return total

    def _depths(self, view: View, role: str, request: Request) -> NDArray[np.int64]:
        hoped = self._hoped[role].depths(request.blocks, num_workers=view.num_workers)
        return np.maximum(view.depths(request.blocks), hoped)

    def _hope(self, role: str, row: int, request: Request, now: float) -> None:
        self._hoped[role].store(row, request.blocks)
        self._hopes.append((now + SPECULATIVE_S, role, row, request.blocks))

    def _forget(self, now: float) -> None:
        while self._hopes and self._hopes[0][0] <= now:
            _, role, row, blocks = self._hopes.popleft()
            self._hoped[role].evict(row, blocks)
