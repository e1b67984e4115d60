from pathlib import Path

from support.words import LAYOUT

from engine.assembly import assemble, num_pool_blocks
from protocol.settings import WorkerSettings
from tools.make_checkpoint import Shape, make_checkpoint

GIB = 1 << 30


def blocks(*, free: int, kv_blocks: int | None = None, kv_bytes: int | None = None) -> int:
    return num_pool_blocks(
        LAYOUT, max_context_tokens=64, free_bytes=free, kv_blocks=kv_blocks, kv_bytes=kv_bytes
    )


def test_a_pool_has_the_blocks_or_bytes_asked_for() -> None:
    assert blocks(free=GIB, kv_blocks=7) == 7
    assert blocks(free=GIB, kv_bytes=10 * LAYOUT.block_bytes + 1) == 10


def test_a_pool_of_default_size_holds_sixteen_contexts() -> None:
    assert blocks(free=GIB) == 16 * 64 // LAYOUT.block_tokens


def test_a_pool_of_default_size_takes_a_quarter_of_the_free_memory_at_most() -> None:
    assert blocks(free=40 * LAYOUT.block_bytes) == 10
    assert blocks(free=0) == 2


def test_what_ends_a_text_is_the_union_of_all_files_for_sampler_and_scheduler(
    tmp_path: Path,
) -> None:
    make_checkpoint(tmp_path, Shape(eos_token_ids=(2,)))
    parts = assemble(
        WorkerSettings(model=tmp_path, redis="redis://localhost", dtype="float32", kv_blocks=2),
        eos_token_ids=(5,),
        memory=lambda layout, num_blocks: memoryview(bytearray(layout.block_bytes * num_blocks)),
        progress=lambda done, total: None,
    )
    assert parts.eos_token_ids == {2, 5}
    assert set(parts.runner.eos_token_ids) == {2, 5}
