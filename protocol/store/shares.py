"""Shares of limits that several routers keep together, as they are asked for and granted. Pure."""

import msgspec

WINDOW_S = 60
NUM_SECONDS = WINDOW_S + 2
"""Of uses in a request: the second that has begun, and the others that reach into the window."""


class ShareRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of which a router wants to hold some."""

    name: str
    limit: int
    """Of any minute, for all routers together."""
    want: int
    uses: tuple[int, ...]
    """The router's own by second, that which has begun first; at most `NUM_SECONDS`."""


class LeasedShare(msgspec.Struct, frozen=True, kw_only=True):
    held: int
    """What the router may use, in place of what it held before."""
    num_free: int
    """Used and held by nobody; below 0 where more was used than the limit."""
    ages: tuple[int, ...]
    """What all routers used, by how many seconds ago at least: 0, 1, ..., 59."""


class Renewal(msgspec.Struct, frozen=True, kw_only=True):
    num_routers: int
    """That asked lately, this one included."""
    shares: tuple[LeasedShare, ...]
    """As they were asked for."""
