"""Requests given to the engine that its counts do not know yet: a step may take long."""

from collections import deque

import msgspec

from protocol.messages import Load


class UncountedRequests:
    """Of the event loop's thread."""

    def __init__(self) -> None:
        self.num_submitted = 0
        self._num_tokens: deque[int] = deque()
        """To compute, of each of the newest ones."""

    def add_request(self, *, num_tokens: int) -> None:
        """The engine has accepted one more, with so many tokens to compute."""
        self.num_submitted += 1
        self._num_tokens.append(num_tokens)

    def added_to(self, load: Load, *, num_counted: int) -> Load:
        """`load`, which counts the first `num_counted` requests, and the rest as waiting."""
        while len(self._num_tokens) > self.num_submitted - num_counted:
            self._num_tokens.popleft()
        if not self._num_tokens:
            return load
        return msgspec.structs.replace(
            load,
            waiting=load.waiting + len(self._num_tokens),
            waiting_tokens=load.waiting_tokens + sum(self._num_tokens),
        )
