"""Settings of a prefill worker."""

from pydantic import Field

from protocol.settings import WorkerSettings


class PrefillSettings(WorkerSettings):
    """`python -m prefill_worker --help` shows them all."""

    lease_ttl_s: float = Field(default=6.0, gt=0)
    """Blocks of a finished prompt wait this long for a sign of life from the decode worker: three
    of its renewals."""
