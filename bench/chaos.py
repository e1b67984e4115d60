"""Two routers and eight workers under load while workers are killed, stopped and restarted.

    make chaos SECONDS=300
    python -m bench.chaos [--seconds 300] [--every-s 3] [--seed 1]

Every answer must be the undisturbed one, and every block returned. Appends a line to
`bench/results/chaos.jsonl`; exits with 1 when a client saw an error or a wrong token.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from support.chaos import NUM_CLIENTS, chaos_checkpoint, run_chaos

from bench.record import record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--every-s", type=float, default=3.0, help="between two deeds, on average")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        checkpoint = chaos_checkpoint(Path(folder))
        running = run_chaos(
            checkpoint, seconds=asked.seconds, every_s=asked.every_s, seed=asked.seed
        )
        outcome, deeds = asyncio.run(running)
    for told in outcome.told:
        print(told, file=sys.stderr)
    record(
        "chaos",
        conditions={**vars(asked), "clients": NUM_CLIENTS, "routers": 2, "workers": 8},
        results={
            "right": outcome.num_right,
            "wrong": outcome.num_wrong,
            "errors": dict(outcome.errors),
            "deeds": deeds,
            **outcome.figures,
        },
    )
    return 0 if outcome.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
