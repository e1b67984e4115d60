"""The error tree. Catch by what you can do about it.

BatonError
├── SettingsError       the operator must change a setting; the process does not start
├── CheckpointError     the operator must change the checkpoint; names the file and the tensor
├── WireError           bytes from a peer were refused: malformed, too large, wrong version
├── StoreError          Redis did not answer; go on with what is known locally
├── TransferError       KV blocks did not arrive
│   ├── PeerLost        the other process is gone; another worker can serve the request
│   ├── LeaseExpired    the source no longer holds the blocks
│   ├── NotLent         the source has no more of the prefix, or lends none now
│   ├── CorruptBlock    checksum or generation did not match; nothing was adopted
│   └── LayoutMismatch  the two ends can never be paired
└── CapacityError       no room now; retry after `retry_after_s`
"""


class BatonError(Exception):
    """Base of everything we raise on purpose, other than ValueError for a caller's mistake."""

    retryable = False
    """True when the same request may succeed on another worker or a moment later."""


class SettingsError(BatonError):
    pass


class CheckpointError(BatonError):
    pass


class WireError(BatonError):
    pass


class StoreError(BatonError):
    retryable = True


class TransferError(BatonError):
    retryable = True


class PeerLost(TransferError):
    pass


class PeerSilent(PeerLost):
    """It was not heard for too long: stopped, cut off or gone, which cannot be told apart."""


class LeaseExpired(TransferError):
    pass


class NotLent(TransferError):
    pass


class CorruptBlock(TransferError):
    pass


class LayoutMismatch(TransferError):
    retryable = False


class CapacityError(BatonError):
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
