"""What this router has in flight, and the refusal of what is beyond its limits: choices by number,
request bodies by bytes. No client takes all of either where there may be others.

Not thread-safe: one event loop owns it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import CapacityError


class Share:
    """What one HTTP request holds of a stock."""

    def __init__(self, stock: "Stock", client: str, most: int | None = None) -> None:
        self._stock = stock
        self._client = client
        self._most = most
        self.num = 0

    def widen(self, num: int) -> None:
        """Hold `num` in all. CapacityError when there is not so much."""
        self._stock.change(self._client, num - self.num, most=self._most)
        self.num = num


class Stock:
    """`size` of something, of which one client holds at most `client_size`."""

    def __init__(
        self, size: int, *, what: str, retry_after_s: float, client_size: int | None = None
    ) -> None:
        self._size = size
        self._client_size = size if client_size is None else client_size
        self._what = what
        self._retry_after_s = retry_after_s
        self._held: Counter[str] = Counter()
        self.num_held = 0

    @contextmanager
    def share(self, client: str, *, most: int | None = None) -> Iterator[Share]:
        """An empty share, to be widened; given back at the end. `most`: that this client may hold
        in all, if that is less than others may."""
        share = Share(self, client, most)
        try:
            yield share
        finally:
            share.widen(0)

    def change(self, client: str, num: int, *, most: int | None = None) -> None:
        if num > 0:
            of_client = self._client_size if most is None else min(most, self._client_size)
            self._check(self.num_held, num, self._size, "this router")
            self._check(self._held[client], num, of_client, "your share of this router")
        self.num_held += num
        self._held[client] += num
        if not self._held[client]:
            del self._held[client]

    def _check(self, held: int, more: int, size: int, whose: str) -> None:
        if held + more > size:
            raise CapacityError(
                f"{whose} already has {held} of {size} {self._what}; retry later",
                retry_after_s=self._retry_after_s,
            )
