"""A cached prefix pulled from another engine, against the same computed: seconds and bytes.

    python -m bench.pull [--tokens 512 2048 8192] [--rounds 3] [--transport shm|tcp]

Two engines with random weights of eight layers, source and sink between them, in one process; what
is timed is from a prompt's submission to its first token. CPU seconds are of both ends. Prompts are
of new tokens each time, so nothing is found but what the other engine has computed.
"""

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from threading import Lock
from typing import cast

from bench.record import record
from engine.batch import RowsRead, SequenceId
from engine.checkpoint.load import load_model
from engine.commands import PrefixToLend, Submission
from engine.kvcache.loans import LentPrefix, LoanId
from engine.kvcache.pool import KvPool
from engine.limits import EngineLimits
from engine.loop import Engine
from engine.models.model import Model
from engine.observer import PrefixToPull, SequenceToken
from engine.runner.cpu import TorchRunner
from engine.sequence import PullEnded, SequenceUsage, Verdict
from kvtransfer.endings import FetchEnd, Landed, LeaseEnd
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.sink.sink import Sink
from kvtransfer.source.borrowing import AskedLoan
from kvtransfer.source.source import Source
from protocol.blocks import BlockChange
from protocol.ids import LeaseId, WorkerId, new_epoch
from protocol.messages import PrefixSource, Sampling
from tools.make_checkpoint import Shape, make_checkpoint

SHAPE = Shape(
    dtype="bfloat16", hidden=512, layers=8, heads=8, kv_heads=4, mlp=1408, vocab=8192, context=16384
)  # fmt: skip
BLOCK_TOKENS = 16
TOKEN_BUDGET = 512
LIMIT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one prompt, to its first token."""

    wall_s: float
    cpu_s: float
    num_bytes: int


class End:
    """An engine with both ends of moving KV; an `engine.observer.EngineObserver`."""

    def __init__(self, name: str, model: Model, *, num_blocks: int, transport: str) -> None:
        (layout,) = model.config.kv_layouts(block_tokens=BLOCK_TOKENS, dtype="bfloat16")
        self.memory = BlockMemory.create(num_blocks=num_blocks, block_bytes=layout.block_bytes)
        self._first: SimpleQueue[SequenceId] = SimpleQueue()
        self._lent: dict[LeaseId, LoanId] = {}
        self._lock = Lock()
        self.pulled: list[FetchEnd] = []
        self.peer: PrefixSource | None = None
        self.engine = Engine(
            runner=TorchRunner(model, KvPool(layout, num_blocks, self.memory.blocks)),
            limits=EngineLimits(
                max_running=8, max_waiting=8, token_budget=TOKEN_BUDGET,
                max_context_tokens=model.config.max_context_tokens,
            ),
            eos_token_ids=(), compat="bench", observer=self,
            generations=cast("list[int]", self.memory.generations),
        )  # fmt: skip
        self.source = Source(
            memory=self.memory, layout=layout, worker=WorkerId(name), epoch=new_epoch(),
            compat="bench", on_lease_end=self._lease_ended, on_borrow=self._asked,
        )  # fmt: skip
        self.sink = Sink(
            memory=self.memory, layout=layout, worker=WorkerId(name), compat="bench",
            transports=(transport,), allow_fallback=False,
        )  # fmt: skip
        self.engine.start()

    def first_token(self, name: str, prompt: Sequence[int], *, pull_tokens: int) -> Cost:
        num_pulls, cpu_s, began_s = len(self.pulled), _cpu_s(), time.perf_counter()
        sampling = Sampling(seed=0, max_tokens=1, temperature=0.0)
        self.engine.submit(
            Submission(
                id=SequenceId(name), prompt=prompt, sampling=sampling, pull_tokens=pull_tokens
            )
        )
        self._first.get(timeout=LIMIT_S)
        wall_s, cpu_s = time.perf_counter() - began_s, _cpu_s() - cpu_s
        num_bytes = 0
        for end in self.pulled[num_pulls:]:
            if not isinstance(end, Landed):
                raise RuntimeError(f"the pull did not land: {end}")
            num_bytes += end.num_bytes
        return Cost(wall_s=wall_s, cpu_s=cpu_s, num_bytes=num_bytes)

    def close(self) -> None:
        self.engine.stop()
        self.sink.close()
        self.source.close()
        self.memory.close()

    # -- an observer ------------------------------------------------------------------------

    def pull(self, sequence: SequenceId, prefix: PrefixToPull) -> None:
        assert self.peer is not None
        self.sink.pull(
            self.peer, seed=prefix.seed, token_ids=prefix.token_ids, hashes=prefix.hashes,
            first_block=prefix.first_block, block_ids=prefix.block_ids, deadline_s=LIMIT_S,
            on_end=partial(self._pulled, sequence),
        )  # fmt: skip

    def step(self, tokens: Sequence[SequenceToken]) -> Collection[SequenceId]:
        for token in tokens:
            self._first.put(token.id)
        return ()

    def admitted(
        self, sequence: SequenceId, block_table: tuple[int, ...], generations: tuple[int, ...],
        num_cached_tokens: int, queued_s: float,
    ) -> None: ...  # fmt: skip

    def computed(self, sequence: SequenceId, num_tokens: int) -> None: ...

    def read(self, sequence: SequenceId, first: int, read: RowsRead) -> None: ...

    def ended(self, sequence: SequenceId, verdict: Verdict, usage: SequenceUsage) -> None: ...

    def settled(self) -> None: ...

    def blocks_changed(self, changes: Sequence[BlockChange]) -> None: ...

    def broken(self, error: BaseException) -> None:
        raise SystemExit(f"the engine is broken: {error}")

    # -- what is lent and pulled --------------------------------------------------------------

    def _pulled(self, sequence: SequenceId, end: FetchEnd) -> None:
        num_blocks = end.num_blocks if isinstance(end, Landed) else 0
        self.pulled.append(end)
        self.engine.pull_done(sequence, PullEnded(num_blocks * BLOCK_TOKENS))

    def _asked(self, source: Source, asked: AskedLoan) -> None:
        tell = partial(self._lend, source, asked)
        self.engine.lend(
            PrefixToLend(
                loan=LoanId(asked.id), seed=asked.seed, token_ids=asked.token_ids, tell=tell
            )
        )

    def _lend(self, source: Source, asked: AskedLoan, lent: LentPrefix) -> None:
        with self._lock:
            lease = source.lend(
                asked.id, block_ids=lent.block_ids, last=lent.last,
                num_tokens=len(lent.block_ids) * BLOCK_TOKENS,
            )  # fmt: skip
            self._lent[lease] = LoanId(asked.id)

    def _lease_ended(self, end: LeaseEnd) -> None:
        with self._lock:
            self.engine.end_loan(self._lent.pop(end.lease))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transport", choices=["shm", "tcp"], default="shm")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), SHAPE)
        results = _measure(Path(folder), chosen.tokens, chosen.rounds, chosen.transport)
    conditions = {
        "rounds": chosen.rounds, "transport": chosen.transport, "block_tokens": BLOCK_TOKENS,
        "token_budget": TOKEN_BUDGET, "model": "random weights, 8 layers, hidden 512, bfloat16",
        "ends": "one process",
    }  # fmt: skip
    record("pull", conditions=conditions, results=results)


def _measure(path: Path, sizes: Sequence[int], rounds: int, transport: str) -> dict[str, object]:
    model = load_model(path, dtype="bfloat16")
    # A pool lends a quarter of its blocks at most, and keeps what the rounds leave in it.
    num_blocks = 4 * (max(sizes) // BLOCK_TOKENS + 1) + 64
    chance, results = random.Random(7), dict[str, object]()
    with ExitStack() as stack:
        ends = [
            stack.enter_context(
                closing(End(name, model, num_blocks=num_blocks, transport=transport))
            )
            for name in ("lender", "puller")
        ]
        lender, puller = ends
        puller.peer = PrefixSource(
            worker=WorkerId("lender"), epoch=lender.source.epoch, address=lender.source.address,
            num_tokens=0,
        )  # fmt: skip
        for size in sizes:
            computed, pulled = [], []
            for number in range(rounds + 1):  # the first warms up
                prompt = [chance.randrange(300, 8_000) for _ in range(size + 1)]
                computed.append(lender.first_token(f"c{size}.{number}", prompt, pull_tokens=0))
                pulled.append(puller.first_token(f"p{size}.{number}", prompt, pull_tokens=size))
                if pulled[-1].num_bytes != size // BLOCK_TOKENS * lender.memory.block_bytes:
                    raise RuntimeError(f"not all of {size} tokens was pulled")
            results[str(size)] = _compare(computed[1:], pulled[1:])
    return results


def _compare(computed: Sequence[Cost], pulled: Sequence[Cost]) -> dict[str, object]:
    def middle(costs: Sequence[Cost]) -> dict[str, float]:
        return {
            "wall_ms": round(1e3 * median(cost.wall_s for cost in costs), 3),
            "cpu_ms": round(1e3 * median(cost.cpu_s for cost in costs), 3),
        }

    ratio = median(c.cpu_s for c in computed) / median(p.cpu_s for p in pulled)
    return {
        "computed": middle(computed), "pulled": middle(pulled), "bytes": pulled[0].num_bytes,
        "cpu_ratio": round(ratio, 1),
    }  # fmt: skip


def _cpu_s() -> float:
    """Of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
