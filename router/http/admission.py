"""How many choices this router has in flight, and the refusal of those beyond its limit.

Not thread-safe: one event loop owns it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import CapacityError


class Seat:
    """The room one HTTP request has taken: one choice, until its body says how many."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self.num = 0

    def widen(self, num: int) -> None:
        """Take room for `num` in all. CapacityError when there is not so much."""
        self._admission.take_seats(num - self.num)
        self.num = num


class Admission:
    def __init__(self, *, max_in_flight: int, retry_after_s: float) -> None:
        self._max_in_flight = max_in_flight
        self._retry_after_s = retry_after_s
        self.num_in_flight = 0

    @contextmanager
    def enter(self) -> Iterator[Seat]:
        """A seat for the time of one HTTP request. CapacityError when there is none."""
        seat = Seat(self)
        seat.widen(1)
        try:
            yield seat
        finally:
            self.num_in_flight -= seat.num

    def take_seats(self, num: int) -> None:
        if self.num_in_flight + num > self._max_in_flight:
            raise CapacityError(
                f"this router already has {self.num_in_flight} of {self._max_in_flight}"
                " requests in flight; retry later",
                retry_after_s=self._retry_after_s,
            )
        self.num_in_flight += num
