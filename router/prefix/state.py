"""How far what is known of a worker's blocks can be believed."""

from enum import StrEnum


class IndexState(StrEnum):
    """Of one worker or of all."""

    EXACT = "exact"
    DEGRADED = "degraded"
    """Something was missed, or there was no room for it."""
    OFF = "off"
    """Nothing was ever learned."""
