"""What one placement costs a router, by the number of workers: lookup, choice and reason.

    python -m bench.placement_decision

Prompts of 32,000 tokens in blocks of 16, parts of them cached on an eighth of the workers. Medians
of the thread's CPU time, in microseconds; hashing the prompt is done once a request, not counted.
"""

import time
from collections.abc import Callable
from random import Random
from statistics import median

from msgspec.structs import replace

from bench.record import record
from protocol.ids import Epoch, RequestId, WorkerId
from protocol.layout import KvLayout
from protocol.messages import (
    Beat,
    Blocks,
    Load,
    LoadReport,
    Registration,
    Role,
    Sampling,
    Speeds,
    StepModel,
)
from router.placement.fleet import Fleet
from router.placement.place import PlacementRules
from router.prefix.prefix_index import PrefixIndex
from router.requests.candidates import Candidates
from router.requests.context import RequestContext
from router.requests.events import GenerationRequest
from router.requests.request import RoutedRequest
from router.workers.worker import KnownWorker

SIZES = (16, 128, 1024)
NUM_TOKENS, NUM_PROMPTS, NUM_ROUNDS = 32_000, 20, 30
NOW = 0.1
LAYOUT = KvLayout(num_layers=32, num_kv_heads=8, head_dim=128, block_tokens=16, dtype="bfloat16")


def main() -> None:
    results = {str(size): _measure(size) for size in SIZES}
    for size, found in results.items():
        print(f"{size} workers: " + ", ".join(f"{name} {us:.1f} us" for name, us in found.items()))
    conditions = {"num_tokens": NUM_TOKENS, "block_tokens": LAYOUT.block_tokens}
    record("placement_decision", conditions=conditions, results=results)


def _measure(size: int) -> dict[str, float]:
    chance, index, fleet = Random(1), PrefixIndex(), Fleet()
    workers: dict[WorkerId, KnownWorker] = {}
    for number in range(size):
        role: Role = "decode" if number % 2 else "prefill"
        known = KnownWorker(_registration(f"{role}-{number:04}", role))
        known.join_fleet(fleet)
        known.note_beat(_beat(chance), now=0.0)
        workers[known.id] = known
        index.follow_worker(known.id, Epoch(1), is_prefix_closed=True)
        index.load_snapshot(known.id, Epoch(1), sequence=0, packed=b"")
    rules = PlacementRules(worker_queue_s=100.0)
    candidates = Candidates(index=index, fleet=fleet, workers=workers, rules=rules)
    contexts = [_context(number, chance) for number in range(NUM_PROMPTS)]
    sequences = dict.fromkeys(workers, 0)
    for context in contexts:
        candidates.place_request(context, now=NOW)
        packed = context.hashes["same"]
        for name in chance.sample(sorted(workers), k=max(2, size // 8)):
            sequences[name] += 1
            index.apply_event(
                name, Epoch(1), sequence=sequences[name], kind="stored",
                packed=packed[: 16 * chance.randrange(100, 2_000)], now=NOW,
            )  # fmt: skip
    one = next(iter(workers.values()))
    report = LoadReport(
        num_received=0, running=3, waiting=1, waiting_tokens=100, context_tokens=900,
        num_free_blocks=900,
    )  # fmt: skip
    beat = _beat(chance)
    return {
        "decision": _median_us(
            [lambda c=c: candidates.place_request(c, now=NOW) for c in contexts]  # type: ignore[misc]
        ),
        "lookup": _median_us(
            [lambda c=c: index.depths(c.hashes["same"], now=NOW) for c in contexts]  # type: ignore[misc]
        ),
        "beat": _median_us([lambda: one.note_beat(beat, now=NOW)]),
        "load report": _median_us([lambda: one.note_load(report, now=NOW)]),
    }


def _median_us(works: list[Callable[[], object]]) -> float:
    spent = []
    for work in works * NUM_ROUNDS:
        begun = time.thread_time()
        work()
        spent.append(time.thread_time() - begun)
    return round(median(spent) * 1e6, 1)


def _registration(name: str, role: Role) -> Registration:
    return Registration(
        worker=WorkerId(name), epoch=Epoch(1), role=role, pid=1, host="simulated",
        address="tcp://127.0.0.1:1", model="simulated", compat="same", layout=LAYOUT,
        num_blocks=20_000, max_context_tokens=131_072, transports=("tcp",),
        kv_address="tcp://127.0.0.1:2", max_step_tokens=2_048,
    )  # fmt: skip


def _beat(chance: Random) -> Beat:
    load = Load(running=chance.randrange(64), waiting=0, waiting_tokens=chance.randrange(40_000))
    speeds = Speeds(
        prefill_tokens_per_s=0.0, decode_step_s=0.0, transfer_bytes_per_s=1e10,
        transfer_latency_s=0.003, step=StepModel(0.005, 3e-5, 1e-9, 1e-4),
    )  # fmt: skip
    return Beat(
        epoch=Epoch(1),
        state="ready",
        blocks=Blocks(total=20_000, free=10_000, cached=0, leased=10_000),
        load=replace(load, context_tokens=chance.randrange(200_000)),
        speeds=speeds,
        transports_used=(),
    )


def _context(number: int, chance: Random) -> RequestContext:
    request = GenerationRequest(
        id=RequestId(f"r{number}"),
        token_ids=tuple(chance.randrange(1_000) for _ in range(NUM_TOKENS)),
        sampling=Sampling(seed=0, max_tokens=500),
        salt="",
        deadline_s=60.0,
    )
    routed = RoutedRequest(request, request.id)
    return RequestContext(routed=routed, begun_at=0.0, ends_at=60.0)


if __name__ == "__main__":
    main()
