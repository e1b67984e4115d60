"""Settings of a prefill worker."""

from worker.transfers.settings import TransferSettings


class PrefillSettings(TransferSettings):
    """`python -m prefill_worker --help` shows them all."""
