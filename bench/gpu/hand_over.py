"""One prefill and one decode worker on one GPU: right tokens, and what the hand-over took.

Real processes on a small random checkpoint; needs `tests` on the path, as `tools.first_gpu` has it.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from support.mini_router import MiniRouter
from support.worker_cluster import GREEDY, WorkerCluster, drive, prompt, tiny_checkpoint

from protocol.messages import Landed

LENGTHS = (9, 100, 200)


def measure(device: str) -> dict[str, object]:
    """`correct` when every disaggregated run says what a colocated one does."""
    landed: list[Landed] = []
    correct: list[bool] = []

    async def hand_over(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        for length in LENGTHS:
            tokens = prompt(length, salt=length)
            _, second = await router.disaggregated(f"apart-{length}", tokens, GREEDY)
            local = await router.decode("decode-0", f"local-{length}", tokens, GREEDY, salt="other")
            await router.ended(local)
            correct.append(second.tokens == local.tokens and len(local.tokens) == GREEDY.max_tokens)
            fetched = second.find(Landed)
            assert isinstance(fetched, Landed)
            landed.append(fetched)
        await router.idle("prefill-0", "decode-0")

    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        cluster = WorkerCluster(tiny_checkpoint(Path(directory) / "tiny"), stack)
        for worker in ("prefill-0", "decode-0"):
            cluster.start(worker, "--device", device)
        drive(cluster, hand_over)
    return {
        "correct": all(correct),
        "transport": sorted({one.transport for one in landed}),
        "fetch_s": [one.fetch_s for one in landed],
        "bytes": [one.bytes_moved for one in landed],
    }
