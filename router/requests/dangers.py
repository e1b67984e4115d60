"""What requests said that ended workers, for when they come again: clients retry by themselves.

Bounded, and lost when the router ends. Holds hashes, no prompt.
"""

from collections import OrderedDict

import msgspec

from router.requests.events import GenerationRequest

NUM_KEPT = 1_000


class Dangers:
    def __init__(self) -> None:
        self._seen: OrderedDict[int, None] = OrderedDict()

    def add(self, request: GenerationRequest) -> None:
        self._seen[_content(request)] = None
        while len(self._seen) > NUM_KEPT:
            self._seen.popitem(last=False)

    def __contains__(self, request: GenerationRequest) -> bool:
        return bool(self._seen) and _content(request) in self._seen


def _content(request: GenerationRequest) -> int:
    """Whatever its seed, which the router may have chosen."""
    return hash((request.token_ids, msgspec.structs.replace(request.sampling, seed=0)))
