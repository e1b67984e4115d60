import subprocess
import sys

from controlplane.checkout import ROOT

PROGRAM = """
import atexit, sys
from protocol.process.run import leave
atexit.register(print, "taken down")
print("last word", file=sys.stdout)
leave(3)
"""


def test_a_process_that_leaves_says_its_last_word_and_is_not_taken_down_first() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (3, "last word\n")
