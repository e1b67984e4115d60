"""What placement keeps of one worker: a row of numbers, the same in Python and in options.c."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

NUM_PEERS: Final = 32
"""Pairs whose own transfer speed is kept for each worker, those used last."""
_NUMBERS: Final = (
    *("busy_until_s", "reported_at_s", "fixed_s", "token_s", "attended_s", "sequence_s"),
    *("latency_s", "bytes_per_s", "token_bytes", "block_tokens", "max_step_tokens"),
    *("longest_tokens", "pool_tokens", "free_tokens", "running", "context_tokens"),
    "waiting_tokens",
)
_WHOLE: Final = ("is_decode", "compat", "rank", "index_slot", "lends", "num_peers")

ROW: Final = np.dtype(
    [
        *((name, np.float64) for name in _NUMBERS),
        ("transports", np.uint64),
        ("peer_latency_s", np.float64, (NUM_PEERS,)),
        ("peer_bytes_per_s", np.float64, (NUM_PEERS,)),
        *((name, np.int32) for name in _WHOLE),
        ("peers", np.int32, (NUM_PEERS,)),
    ],
    align=True,
)
"""`busy_until_s`: when it will have computed the prompts that it has, as of a report of
`reported_at_s` and what was sent since. `fixed_s` to `sequence_s`: `protocol.messages.StepModel`.
`latency_s`, `bytes_per_s`: of what it fetches; `peers` are slots whose pair with it has its own.
`running`: sequences that decode or will, `context_tokens` their contexts, `waiting_tokens` those
of prompts not yet computed. `max_step_tokens`: prompt tokens of a step, `longest_tokens` of a
sequence. `rank` orders workers by name; `index_slot` is -1 while the prefix index does not follow
it."""

Rows = NDArray[Any]
"""Of dtype `ROW`: all slots, some of them, or one."""
