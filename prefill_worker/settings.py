"""Settings of a prefill worker."""

from typing import Literal

from pydantic import Field, field_validator

from kvtransfer.transport_names import listed
from protocol.process.settings import WorkerSettings


class PrefillSettings(WorkerSettings):
    """`python -m prefill_worker --help` shows them all."""

    lease_ttl_s: float = Field(default=6.0, gt=0)
    """Blocks of a finished prompt wait this long for a sign of life from the decode worker: three
    of its renewals."""
    kv_help_copy: Literal["auto", "always", "never"] = "auto"
    """Whether this worker copies along when a decode worker of the same host fetches over shared
    memory. Auto: while a core is idle: two copy faster than one, but the model comes first."""

    @field_validator("transports")
    @classmethod
    def _known_transports(cls, value: str) -> str:
        return listed(value)
