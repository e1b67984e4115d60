"""SIGTERM before a process can drain: it ends at once, having accepted nothing.

To be called before anything else is imported, so this module imports what an interpreter has
anyway. Without it the first process of a container, of whom the kernel keeps signals that it has
no handler for, would live on.
"""

import os
import signal
from types import FrameType

EXIT_TERMINATED = 143
"""As a shell says it of a process that died of SIGTERM."""


def end_when_asked(exit_code: int = 0) -> None:
    """Until the process has a handler of its own (`protocol.process.run`). `exit_code`: 0 of one
    whose work is to serve, EXIT_TERMINATED of one that leaves a task undone."""

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(exit_code)

    signal.signal(signal.SIGTERM, end)
