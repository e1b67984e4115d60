"""Seconds from `baton up` to ready on the shipped model, and the router's memory.

    python -m bench.startup [--rounds 5] [--model DIR]

The first round is reported apart: on a new machine it builds the CPU kernels.
"""

import argparse
import statistics
from pathlib import Path

from bench.record import record
from bench.up import Up, maps_torch, resident_mib
from controlplane.checkout import shipped_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    seconds, router_mib, torch_free = [], [], True
    for _ in range(options.rounds):
        with Up(["--model", str(options.model), "--dtype", options.dtype]) as up:
            seconds.append(up.ready_s)
            (router,) = up.child_pids("router")
            prompt = "The lamp is in the"
            up.post("/v1/completions", {"model": up.model, "prompt": prompt, "max_tokens": 8})
            router_mib.append(resident_mib(router))
            torch_free = torch_free and not maps_torch(router)
    record(
        "startup",
        conditions={"model": options.model.name, "dtype": options.dtype, "workers": "1+1"},
        results={
            "first_s": round(seconds[0], 2),
            "median_s": round(statistics.median(seconds), 2),
            "max_s": round(max(seconds), 2),
            "rounds": len(seconds),
            "router_rss_mib": round(max(router_mib), 1),
            "router_without_torch": torch_free,
        },
    )


if __name__ == "__main__":
    main()
