"""What a sink tells its owner while links and fetches go on, for whoever counts it. Values only.

Told on the sink's thread, never instead of a fetch's end.
"""

from dataclasses import dataclass

from protocol.ids import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUp:
    """A stream to a source is open."""

    source: WorkerId
    transport: str
    missed: tuple[tuple[str, str], ...]
    """Earlier transports of the settings, and why each cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRefused:
    """No transport to this source can or may be used."""

    source: WorkerId
    missed: tuple[tuple[str, str], ...]
    """As of `LinkUp`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedAgain:
    """A fetch asks for what it still lacks, under a new attempt."""

    source: WorkerId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Blocks arrived and are not used."""

    num_blocks: int
    why: str


SinkEvent = LinkUp | LinkRefused | AskedAgain | Rejected
