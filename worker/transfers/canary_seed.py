"""The name, at both ends, of a block that is moved only to see whether one can be."""

from typing import Final

from protocol.blocks import HASH_BYTES
from protocol.ids import BlockHash

CANARY: Final = BlockHash(b"baton's canary".ljust(HASH_BYTES, b"\0"))
"""In place of a hash chain's beginning, and of its block's hash: no real one has it."""
