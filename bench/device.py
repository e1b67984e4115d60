"""KV transfer between two processes with pools on GPUs, beside the device's own copy.

    PYTHONPATH=.:tests python -m bench.device [--kind cuda|fake] [--total-mib 64] [--block-kib 32]

GB/s (1e9 bytes) from `fetch` to its end, median and best; every block checked once. The limit is
one contiguous copy on the device. With the fake it shows that the measurement works and records
nothing. On a machine without a GPU it says so and ends with 1.
"""

import argparse
import statistics
import sys
import threading
import time
from contextlib import closing

from support.device_source import Child, content_of, device_source, layout_of, pool_of
from support.gpu import why_no_gpu, why_no_nccl

from bench.record import is_folder_named, record
from bench.row import Row, tell
from kvtransfer.endings import FetchEnd, Landed
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.sink.sink import Sink
from protocol.ids import WorkerId
from protocol.layout import compat_hash

BLOCK_KIB = (32, 256, 2048)
ROUNDS = 12
FETCH_WITHIN_S = 120.0
TRANSPORTS = ("cuda_ipc", "nccl")


def main() -> int:
    asked = _arguments()
    if asked.kind == "cuda" and (why := why_no_gpu()):
        print(f"nothing measured: {why}")
        return 1
    for transport in TRANSPORTS:
        if asked.kind == "cuda" and transport == "nccl" and (why := why_no_nccl()):
            print(f"nccl is not measured: {why}")
            if is_folder_named():
                tell(Row(part=transport, result=f"not measured: {why}"[:100]))
            continue
        for total_mib in asked.total_mib:
            for block_bytes in (kib << 10 for kib in asked.block_kib):
                measure(asked.kind, transport, block_bytes=block_bytes, total_bytes=total_mib << 20)
    return 0


def measure(kind: str, transport: str, *, block_bytes: int, total_bytes: int) -> None:
    """One row: printed, and recorded when it is of a real device."""
    num_blocks = total_bytes // block_bytes
    sizes = {"block_bytes": block_bytes, "num_blocks": num_blocks}
    with device_source(kind, transport, **sizes) as source, closing(pool_of(kind, **sizes)) as pool:
        layout = layout_of(block_bytes)
        sink = Sink(
            memory=pool, layout=layout, worker=WorkerId("decode-0"), transports=(transport,),
            compat=compat_hash(layout, model_revision="tiny"), allow_fallback=False,
        )  # fmt: skip
        with closing(sink):
            fetch_s(sink, source, num_blocks)  # the stream, and with NCCL the communicator
            check(pool)
            seconds = [fetch_s(sink, source, num_blocks) for _ in range(ROUNDS)]
        limit = copy_gb_per_s(pool) if kind == "cuda" else 0.0
    median = total_bytes / statistics.median(seconds) / 1e9
    best = total_bytes / min(seconds) / 1e9
    print(f"{transport:8} {block_bytes >> 10:5} KiB x {num_blocks:5}: {median:8.2f} GB/s median, "
          f"{best:8.2f} best, limit {limit:8.2f}")  # fmt: skip
    if is_folder_named():
        tell(Row(
            part=f"{transport} {total_bytes >> 20} MiB in {block_bytes >> 10} KiB",
            result=f"{median:.1f} GB/s", limit=f"{limit:.0f} GB/s" if limit else "",
            share=median / limit if limit else None,
        ))  # fmt: skip
    if kind == "cuda":
        record(
            "kvtransfer_device",
            conditions={"case": transport, "block_bytes": block_bytes, "total_bytes": total_bytes,
                        "rounds": ROUNDS, "gpu": pool.driver.device},
            results={"ours": median, "best": best, "limit": limit,
                     "ratio_to_limit": median / limit},
        )  # fmt: skip


def fetch_s(sink: Sink, source: Child, num_blocks: int) -> float:
    """Seconds of one fetch of all blocks into the opposite order."""
    ticket, ends, over = source.lend(), list[FetchEnd](), threading.Event()

    def ended(end: FetchEnd) -> None:
        ends.append(end)
        over.set()

    started_s = time.perf_counter()
    sink.fetch(
        ticket=ticket, indices=range(num_blocks), block_ids=range(num_blocks - 1, -1, -1),
        deadline_s=FETCH_WITHIN_S, on_end=ended,
    )  # fmt: skip
    assert over.wait(FETCH_WITHIN_S + 1.0), "the fetch did not end"
    took_s = time.perf_counter() - started_s
    if not isinstance(ends[0], Landed):
        raise SystemExit(f"not landed: {ends[0]}")
    return took_s


def check(pool: DeviceMemory) -> None:
    """A speed of wrong bytes is none."""
    last = pool.num_blocks - 1
    for block in range(pool.num_blocks):
        if pool.read(last - block) != content_of(block, pool.block_bytes):
            raise SystemExit(f"block {block} is wrong")


def copy_gb_per_s(pool: DeviceMemory) -> float:
    """One contiguous copy of as many bytes on the same device, the best of some."""
    import torch

    from kvtransfer.device.cuda import CudaDriver

    assert isinstance(pool.driver, CudaDriver)
    source = pool.driver.tensor(pool.span)
    target = torch.empty_like(source)
    best_s = float("inf")
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started_s)
    return len(source) / best_s / 1e9


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kind", choices=["cuda", "fake"], default="cuda")
    parser.add_argument("--total-mib", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--block-kib", type=int, nargs="+", default=BLOCK_KIB)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
