"""`python -m decode_worker`: its exit code is that of `worker.process.main`."""

import sys

from protocol.process.early_end import end_when_asked

if __name__ == "__main__":
    end_when_asked()
    from decode_worker.settings import DecodeSettings
    from protocol.process.run import leave
    from worker.process import main

    leave(main("decode", DecodeSettings, sys.argv[1:], wiring="decode_worker.transfers"))
