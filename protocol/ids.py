"""The names things go by between processes.

Values are opaque: compare them, print them, never parse them.
"""

import secrets
from typing import NewType

WorkerId = NewType("WorkerId", str)
"""Stable name of a worker slot, e.g. `decode-0`; a restarted worker keeps it and changes epoch."""
RouterId = NewType("RouterId", str)
RequestId = NewType("RequestId", str)
"""The client's `x-request-id` or one we made, with `.i` appended for each of several choices."""
Epoch = NewType("Epoch", int)
"""Random 63-bit number of one worker incarnation. Nothing of another epoch is ever believed."""
LeaseId = NewType("LeaseId", int)
BlockHash = NewType("BlockHash", bytes)
"""16 bytes: the identity of a sealed block and of everything before it."""


def new_epoch() -> Epoch:
    return Epoch(secrets.randbits(63))
