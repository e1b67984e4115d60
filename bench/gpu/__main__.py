"""`python -m bench.gpu`: one bounded run of every part.

With `--toy` a tiny shape runs on the host, to show that every part works, and nothing is recorded.
Ends with 1 where a part of ours fails or is below its bar, or without a GPU.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.gpu.parts import Bench
    from engine.runner.gpu.device import Device

BUDGET_S = 570.0
PARTS = ("limits", "engine", "attention", "hand_over", "peers")


def main() -> int:
    asked = _arguments()
    from bench.gpu.parts import Bench  # torch: seconds that --help need not wait
    from bench.gpu.plan import REAL, SMALL
    from engine.runner.gpu.opening import open_device
    from protocol.errors import SettingsError

    try:
        device = _host_device() if asked.toy else open_device("cuda")
    except SettingsError as error:
        print(f"nothing measured: there is no GPU here, and no --toy was asked for: {error}")
        return 1
    assert device is not None
    device.bind()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(
            SMALL if asked.toy else REAL, device, Path(directory), time.monotonic() + asked.within_s
        )
        measure(bench, asked.only)
    for failure in bench.failures:
        print(f"failed: {failure}", file=sys.stderr)
    for one in bench.below:
        print(f"below the bar: {one}", file=sys.stderr)
    return 1 if bench.failures or bench.below else 0


def measure(bench: "Bench", only: Sequence[str]) -> None:
    """The limits first: all shares are of them."""
    bench.part("limits", bench.limits)
    if "engine" in only:
        bench.engine()
    if "attention" in only:
        bench.attention()
    if "hand_over" in only:
        bench.part("hand_over", bench.hand_over)
    if "peers" in only:
        bench.peers()


def _host_device() -> "Device":
    from support.host_device import HostDevice  # of the tests: `tools.first_gpu` finds them

    return HostDevice()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The engine on one GPU, its limits, its peers.")
    parser.add_argument("--toy", action="store_true", help="a tiny shape on the host")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="beside the limits")
    parser.add_argument("--within-s", type=float, default=BUDGET_S, help="peers take what is left")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
