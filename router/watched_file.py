"""Whether a file is still the one that was read.

What is found by its path counts, so that a mounted Kubernetes secret, whose files are links that
are moved to another version, is seen too.
"""

import os
from pathlib import Path


def file_version(path: Path) -> tuple[int, ...] | None:
    """What differs between two versions of a file; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
