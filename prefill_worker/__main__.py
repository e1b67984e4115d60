"""`python -m prefill_worker`: its exit code is that of `worker.process.main`."""

import sys

from prefill_worker.settings import PrefillSettings
from protocol.process.run import leave
from worker.process import main

if __name__ == "__main__":
    leave(main("prefill", PrefillSettings, sys.argv[1:], wiring="prefill_worker.transfers"))
