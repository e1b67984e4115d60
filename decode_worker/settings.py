"""Settings of a decode worker."""

from pydantic import Field, field_validator

from kvtransfer.transport_names import listed
from protocol.process.settings import WorkerSettings


class DecodeSettings(WorkerSettings):
    """`python -m decode_worker --help` shows them all."""

    lease_ttl_s: float = Field(default=6.0, gt=0)
    """Asked for when renewing a lease; a source may grant less."""
    allow_fallback: bool = True
    """Use the next of `transports` when the first cannot be had; said in the log and in beats."""
    kv_spin_us: float = Field(default=0.0, ge=0, le=10_000)
    """Microseconds that the transfer thread looks for news without sleeping after it was busy,
    while fetches run: a fetch then ends sooner by the time that a thread takes to wake, for a
    core. 0: it sleeps at once, because the model needs the cores more."""
    tcp_lanes: int = Field(default=0, ge=0, le=16)
    """TCP connections to each source. 0: one within a host, four between hosts, where each has a
    congestion window of its own."""

    @field_validator("transports")
    @classmethod
    def _known_transports(cls, value: str) -> str:
        return listed(value)
