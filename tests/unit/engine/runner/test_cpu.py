from pathlib import Path

import pytest
import torch
from support.eventually import eventually
from support.forwards import chunk, pool_for, step
from support.observed import RecordingObserver

from engine.batch import SequenceId
from engine.checkpoint.load import load_model
from engine.commands import Submission
from engine.kvcache.pool import KvPool
from engine.limits import EngineLimits
from engine.loop import Engine
from engine.models.model import Model
from engine.runner.cpu import TorchRunner
from protocol.layout import KvLayout
from protocol.messages import Sampling
from tools.make_checkpoint import Shape, make_checkpoint

PROMPT = [5, 9, 200, 31, 77, 8, 120, 44, 301, 2, 6]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, Shape(family="qwen3"))
    return load_model(path, dtype="float32")


def generate(model: Model, sizes: list[int], *, count: int, beside: int = 0) -> list[int]:
    """Seeded tokens after PROMPT computed in chunks of `sizes`, beside other sequences."""
    sampling = Sampling(seed=11, max_tokens=count, temperature=1.3, top_p=0.95)
    runner = TorchRunner(model, pool_for(model, num_blocks=80))
    tables = [list(range(8 * s, 8 * s + 8)) for s in range(beside + 1)]
    start, outputs, todo = 0, list[int](), list(sizes)
    while len(outputs) < count:
        token_ids = PROMPT[start : start + todo.pop(0)] if todo else outputs[-1:]
        mine = chunk(
            token_ids,
            start=start,
            table=tables[0],
            sampling=None if todo else sampling,
            prompt_ids=PROMPT,
            outputs=list(outputs),
        )
        others = [
            chunk([s] * (1 + s), table=tables[s], sequence=f"other {s}")
            for s in range(1, beside + 1)
        ]
        sampled = step(runner, [*others[:2], mine, *others[2:]])
        assert len(sampled) == len(others) + (not todo)
        start += len(token_ids)
        if not todo:
            outputs.append(sampled[mine.sequence].token_id)
    return outputs


def test_sampled_text_depends_neither_on_chunks_nor_on_the_batch(model: Model) -> None:
    expected = generate(model, [11], count=20)
    assert len(set(expected)) > 5
    assert generate(model, [1] * 11, count=20) == expected
    assert generate(model, [3, 7, 1], count=20, beside=4) == expected


def test_a_sequence_continues_on_another_runner_from_the_same_blocks(model: Model) -> None:
    """What decode does: the pool's bytes are copied, nothing else."""
    here, there = pool_for(model), pool_for(model)
    sampling = Sampling(seed=3, max_tokens=9, temperature=1.0)
    first = step(TorchRunner(model, here), [chunk(PROMPT, table=[4, 9], sampling=sampling)])
    there.tensor[[0, 7]] = here.tensor[[4, 9]]
    token = next(iter(first.values())).token_id
    results = [
        step(
            TorchRunner(model, pool),
            [chunk([token], start=len(PROMPT), table=table, sampling=sampling, outputs=[token])],
        )
        for pool, table in ((here, [4, 9]), (there, [0, 7]))
    ]
    assert results[0] == results[1]


def test_a_step_that_samples_nothing_still_writes_its_kv(model: Model) -> None:
    pools = [pool_for(model), pool_for(model)]
    for pool, sampling in zip(pools, (None, Sampling(seed=0, max_tokens=1)), strict=True):
        step(TorchRunner(model, pool), [chunk(PROMPT, table=[1, 2], sampling=sampling)])
    written = [pool.tensor[[1, 2]][:, :, :, :, :3] for pool in pools]
    assert torch.equal(*written)
    assert not written[0].isnan().any()


def test_a_chunk_its_blocks_cannot_hold_is_refused(model: Model) -> None:
    runner = TorchRunner(model, pool_for(model))
    with pytest.raises(ValueError, match="do not fit 1 blocks of 8"):
        step(runner, [chunk(PROMPT, table=[1])])
    with pytest.raises(ValueError, match="0 tokens"):
        step(runner, [chunk([], table=[1])])
    with pytest.raises(ValueError, match="no block to write"):
        step(runner, [chunk(PROMPT, table=[1, -1])])


def test_a_sequence_with_damaged_kv_gets_no_token_and_the_one_beside_it_does(model: Model) -> None:
    chunks = [
        chunk(PROMPT, table=[1, 2], sequence="good"),
        chunk([5], start=3, table=[7], sequence="damaged"),  # nobody wrote tokens 0 to 2
    ]
    assert list(step(TorchRunner(model, pool_for(model)), chunks)) == ["good"]


def test_min_tokens_bans_every_token_that_ends_a_text(model: Model) -> None:
    """Whichever file of the checkpoint names it."""

    def answer(*eos_token_ids: int) -> int:
        runner = TorchRunner(model, pool_for(model), eos_token_ids=eos_token_ids)
        sampling = Sampling(seed=0, max_tokens=9, temperature=0.0, min_tokens=2)
        sampled = step(runner, [chunk(PROMPT, table=[1, 2], sampling=sampling)])
        return sampled[SequenceId("a")].token_id

    likeliest = answer()
    assert likeliest not in Shape().eos_token_ids
    assert answer(likeliest) != likeliest


def test_a_pool_lies_over_the_memory_it_is_given() -> None:
    layout = KvLayout(num_layers=1, num_kv_heads=1, head_dim=2, block_tokens=2, dtype="bfloat16")
    memory = bytearray(layout.block_bytes * 3)
    pool = KvPool(layout, 3, memory)
    pool.tensor[2] = 1.0
    assert memory[: 2 * layout.block_bytes] == bytes(2 * layout.block_bytes)
    assert memory[-2:] == b"\x80\x3f"
    with pytest.raises(ValueError, match="4 blocks need 64"):
        KvPool(layout, 4, memory)


def test_kernels_and_twins_fill_the_pool_alike(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, Shape(family="qwen2", dtype="bfloat16"))
    pools = []
    for native in (True, False):
        model = load_model(tmp_path, dtype="float32", native=native)
        pools.append(pool_for(model, fill=0.0))
        step(TorchRunner(model, pools[-1]), [chunk(PROMPT, table=[3, 1])])
    assert torch.allclose(pools[0].tensor, pools[1].tensor, atol=1e-4)


def texts(model: Model, *, num_blocks: int) -> tuple[list[list[int]], int]:
    """What an engine on a pool of that size says to three prompts, and how often it preempted."""
    observer = RecordingObserver()
    engine = Engine(
        runner=TorchRunner(model, pool_for(model, num_blocks=num_blocks)),
        limits=EngineLimits(
            max_running=4, max_waiting=4, token_budget=16, max_context_tokens=num_blocks * 8
        ),
        eos_token_ids=(),
        compat="test",
        generations=[0] * num_blocks,
        observer=observer,
    )
    names = [SequenceId(str(i)) for i in range(3)]
    for i, name in enumerate(names):
        sampling = Sampling(seed=i, max_tokens=24, temperature=0.8, repetition_penalty=1 + i / 10)
        engine.submit(Submission(id=name, prompt=[*PROMPT, i], sampling=sampling))
    engine.start()
    eventually(lambda: len(observer.endings) == 3)
    engine.stop()
    return [observer.tokens[name] for name in names], engine.stats().num_preempted


def test_preempted_requests_finish_with_identical_tokens(model: Model) -> None:
    undisturbed, none = texts(model, num_blocks=64)
    preempted, some = texts(model, num_blocks=8)
    assert (none, some > 0) == (0, True)
    assert preempted == undisturbed
    assert [len(text) for text in preempted] == [24] * 3
