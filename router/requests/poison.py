"""What the requests that ended workers asked for, for when they come again: clients retry.

Bounded, and lost when the router ends. Holds hashes, no prompt.
"""

from collections import OrderedDict

import msgspec

from router.requests.events import GenerationRequest

NUM_KEPT = 1_000


class PoisonRequests:
    def __init__(self) -> None:
        self._seen: OrderedDict[int, int] = OrderedDict()

    def add(self, request: GenerationRequest) -> None:
        self._seen[_content(request)] = self.num_times(request) + 1
        while len(self._seen) > NUM_KEPT:
            self._seen.popitem(last=False)

    def num_times(self, request: GenerationRequest) -> int:
        """That the same was added."""
        return self._seen.get(_content(request), 0) if self._seen else 0


def _content(request: GenerationRequest) -> int:
    """Whatever its seed, which the router may have chosen."""
    rule = msgspec.structs.replace(request.sampling, seed=0)
    return hash((request.version, request.token_ids, rule, request.reading))
