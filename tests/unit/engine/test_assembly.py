from pathlib import Path

import pytest
from msgspec.structs import replace
from support.family_shapes import LONGROPE
from support.words import LAYOUT

from engine.assembly import Assembly, assemble, num_pool_blocks
from protocol.errors import SettingsError
from protocol.layout import KvLayout
from protocol.process.settings import WorkerSettings
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


def test_a_pool_has_room_for_two_token_blocks_in_every_group() -> None:
    layout = replace(LAYOUT, num_groups=3)
    assert num_pool_blocks(layout, max_context_tokens=64, free_bytes=0) == 6


def test_less_than_two_blocks_in_every_kv_group_is_refused_with_the_setting_given(
    tmp_path: Path,
) -> None:
    layout = replace(LAYOUT, num_groups=3)
    with pytest.raises(SettingsError, match=f"kv_bytes: 9: two .* are 6 .*{layout.block_bytes} b"):
        num_pool_blocks(layout, max_context_tokens=64, free_bytes=GIB, kv_bytes=9)
    make_checkpoint(tmp_path, Shape(family="qwen2", layers=3, window=9, window_from_layer=1))
    with pytest.raises(SettingsError, match="kv_blocks: 5: two blocks in each KV group are 6"):
        assembled(tmp_path, kv_blocks=5)
    parts = assembled(tmp_path, kv_blocks=6)
    assert parts.windows == (None, 9, 9)
    assert parts.layouts == (parts.layout,)


def bytes_for(layout: KvLayout, num_blocks: int) -> memoryview:
    return memoryview(bytearray(layout.block_bytes * num_blocks))


def assembled(
    path: Path, *, kv_blocks: int | None = None, max_model_len: int | None = None
) -> Assembly[None]:
    return assemble(
        WorkerSettings(
            model=path, redis="redis://localhost", dtype="float32", kv_blocks=kv_blocks,
            max_model_len=max_model_len,
        ),
        eos_token_ids=(5,),
        memory=lambda layout, num_blocks: (None, bytes_for(layout, num_blocks)),
        progress=lambda done, total: None,
    )  # fmt: skip


def test_a_length_bounds_sequences_and_pool_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    make_checkpoint(tmp_path, Shape(context=64, rope=rope))
    whole, cut = assembled(tmp_path), assembled(tmp_path, max_model_len=32)
    assert (whole.limits.max_context_tokens, cut.limits.max_context_tokens) == (256, 32)
    assert whole.runner.num_blocks == 8 * cut.runner.num_blocks
    assert whole.compat == cut.compat
    told = [record.__dict__ for record in caplog.records if record.message == "context"]
    assert [(one["tokens"], one["rope"]) for one in told] == [
        (256, "yarn, factor 4 of 64 tokens"),
        (32, "yarn, factor 4 of 64 tokens"),
    ]


def test_lengths_that_choose_other_frequencies_are_never_paired(tmp_path: Path) -> None:
    original = {"original_max_position_embeddings": 64}
    make_checkpoint(tmp_path, Shape(family="phi3", context=256, rope=LONGROPE, extra=original))
    lengths = (None, 256, 100, 64, 32)
    compats = [assembled(tmp_path, max_model_len=length).compat for length in lengths]
    assert compats[0] == compats[1] == compats[2] != compats[3] == compats[4]


def test_what_ends_a_text_is_for_sampler_and_scheduler_what_the_worker_says(
    tmp_path: Path,
) -> None:
    """Whatever the model's own files say: there is one rule, the tokeniser's."""
    make_checkpoint(tmp_path, Shape(eos_token_ids=(2,)))
    parts = assembled(tmp_path, kv_blocks=2)
    assert parts.eos_token_ids == {5}
    assert set(parts.runner.eos_token_ids) == {5}


def test_memory_that_cannot_be_had_is_a_wrong_setting(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, Shape(family="llama"))
    with pytest.raises(SettingsError, match=r"kv_blocks: 2147483647 blocks of .* bytes are free"):
        assembled(tmp_path, kv_blocks=(1 << 31) - 1)
