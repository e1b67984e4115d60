"""Settings of a decode worker."""

from worker.transfers.settings import TransferSettings


class DecodeSettings(TransferSettings):
    """`python -m decode_worker --help` shows them all."""
