"""Becomes another program that dies with its parent: `die_with_parent.py PARENT COMMAND...`.

`controlplane.local.child` starts every child through it, so that a supervisor killed with SIGKILL
leaves nothing running. The death signal survives `exec`. Linux only; elsewhere it just execs.
Runs as a bare script, before any site-packages: it must import nothing of ours.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
