"""`python -m prefill_worker`: its exit code is that of `worker.process.main`."""

import sys

from protocol.process.early_end import end_when_asked

if __name__ == "__main__":
    end_when_asked()
    from prefill_worker.settings import PrefillSettings
    from protocol.process.run import leave
    from worker.process import main

    leave(main("prefill", PrefillSettings, sys.argv[1:], wiring="prefill_worker.transfers"))
