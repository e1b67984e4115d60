"""Settings of a decode worker."""

from worker.settings import TransferSettings


class DecodeSettings(TransferSettings):
    """`python -m decode_worker --help` shows them all."""
