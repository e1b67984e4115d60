"""How many tokens an answer is likely to have, by the last ones of its tenant. Pure.

Most answers end long before `max_tokens`: counted by that, whoever leaves it out would wait for
answers that nobody gives.
"""

from collections import OrderedDict

PRIOR_TOKENS = 256
MOST_TENANTS = 4096
"""Remembered; without keys every address is one."""
_NEW_PART = 0.1


class ExpectedOutput:
    def __init__(self) -> None:
        self._means: OrderedDict[str, float] = OrderedDict()

    def tokens_for(self, tenant: str, *, max_tokens: int) -> int:
        return min(max_tokens, round(self._means.get(tenant, PRIOR_TOKENS)))

    def note_ended(self, tenant: str, num_tokens: int) -> None:
        before = self._means.pop(tenant, PRIOR_TOKENS)
        self._means[tenant] = before + (num_tokens - before) * _NEW_PART
        while len(self._means) > MOST_TENANTS:
            self._means.popitem(last=False)
