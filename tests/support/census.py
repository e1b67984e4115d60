"""What this process holds of the kernel: descriptors, threads and shared segments, by kind."""

import ctypes
import gc
import os
import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from support.eventually import eventually

_NUMBERS = re.compile(r"\d+")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")

Census = dict[str, int]


def census() -> Census:
    """How many of each kind of thing are held now."""
    held = Counter(_descriptors())
    held["threads"] = len(os.listdir("/proc/self/task"))
    held["mapped segments"] = Path("/proc/self/maps").read_text().count("memfd:")
    return dict(held)


def settled(still_s: float = 0.3) -> Census:
    """What is held once nothing has come or gone for a while, garbage left out."""
    gc.collect()
    seen, since_s = census(), time.monotonic()

    def still() -> bool:
        nonlocal seen, since_s
        if (now := census()) != seen:
            seen, since_s = now, time.monotonic()
        return time.monotonic() - since_s > still_s

    eventually(still, what="a steady census")
    return seen


def back_to(before: Census, within_s: float = 5.0) -> None:
    """Wait until exactly what was held before is held again."""
    try:
        eventually(lambda: not _more(before), within_s)
    except AssertionError as error:
        raise AssertionError(f"after {within_s} s still more or less: {_more(before)}") from error


def resident_bytes() -> int:
    """Without what the allocators keep for later."""
    gc.collect()
    with suppress(AttributeError, OSError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def _more(before: Census) -> Census:
    now = Counter(census())
    now.subtract(before)
    return {kind: count for kind, count in now.items() if count}


def _descriptors() -> list[str]:
    kinds = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one the listing was read through
            continue
        if not target.endswith("/fd"):
            special = target.startswith(("/memfd:", "anon_inode:", "socket:", "pipe:"))
            kinds.append(_NUMBERS.sub("", target) if special else "file")
    return kinds
