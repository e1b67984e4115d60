"""What a step on a device is made of, each by itself."""

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support.forwards import GREEDY, chunk
from support.host_device import HostDevice
from support.words import LAYOUT
from torch.utils._python_dispatch import TorchDispatchMode

from engine.runner.contract import StepHung
from engine.runner.gpu.arrays import (
    NO_FEED,
    StepFields,
    empty_decode,
    is_decode,
    padded,
    step_arrays,
)
from engine.runner.gpu.cuda import wait_until
from engine.runner.gpu.graphs import decode_sizes, size_for
from engine.runner.gpu.opening import open_device
from engine.runner.gpu.penalties import penalised, penalties_of
from engine.runner.gpu.upload import ALIGN_BYTES, Upload, upload_bytes
from protocol.errors import SettingsError
from protocol.layout import KvLayout
from protocol.messages import Sampling
from protocol.process.settings import WorkerSettings

# -- waiting for the device ------------------------------------------------------------------


def test_a_step_that_never_ends_is_given_up() -> None:
    with pytest.raises(StepHung, match=r"has not ended its step in 0\.005 s"):
        wait_until(lambda: False, patience_s=0.005)


def test_a_step_is_asked_after_until_it_has_ended_or_failed() -> None:
    answers = iter([False, False, True])
    wait_until(lambda: next(answers))
    assert next(answers, None) is None

    def failed() -> bool:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        wait_until(failed)


# -- choosing the device --------------------------------------------------------------------


def test_a_gpu_that_torch_does_not_see_is_refused_with_field_value_and_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_device("auto") is None and open_device("cpu") is None
    with pytest.raises(SettingsError, match=r"device: 'cuda': torch .* sees 0 GPUs here; use auto"):
        open_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match=r"device: 'cuda:2': .* sees 2 GPUs"):
        open_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA"])
def test_a_device_of_no_known_kind_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        WorkerSettings(model=Path("m"), device=device)


# -- batch sizes ----------------------------------------------------------------------------


def test_decode_steps_are_captured_for_small_batches_multiples_of_eight_and_the_largest() -> None:
    assert decode_sizes(1) == (1,)
    assert decode_sizes(6) == (1, 2, 4, 6)
    assert decode_sizes(33) == (1, 2, 4, 8, 16, 24, 32, 33)
    assert len(decode_sizes(256)) == 35


def test_a_batch_takes_the_smallest_size_that_holds_it() -> None:
    sizes = decode_sizes(24)
    assert [size_for(rows, sizes) for rows in (1, 3, 8, 9, 24)] == [1, 4, 8, 16, 24]
    assert size_for(25, sizes) is None and size_for(1, ()) is None


def test_only_a_step_whose_every_chunk_is_one_token_that_samples_is_a_decode() -> None:
    one = chunk([3], table=[0])
    assert is_decode([one, one])
    assert not is_decode([one, chunk([3, 4], table=[0])])
    assert not is_decode([one, chunk([3], table=[0], sampling=None)])


# -- bans -----------------------------------------------------------------------------------


class Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the shapes of what is written by index."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if "index_put" in str(func):
            self.shapes.append(tuple(args[2].shape))
        return func(*args, **(kwargs or {}))


def test_bans_are_written_from_the_device_because_a_number_would_be_copied_with_a_wait() -> None:
    rule = Sampling(seed=0, max_tokens=9, min_tokens=5, stop_token_ids=(1, 3))
    penalties = penalties_of(
        [chunk([9], table=[0], sampling=rule)], eos_token_ids=(2,), vocab_size=5
    )
    with Written() as written:
        shaped_RV = penalised(torch.zeros(1, 5), penalties, HostDevice())
    assert written.shapes == [(3,)]
    assert shaped_RV.tolist() == [[0, -math.inf, -math.inf, -math.inf, 0]]


def test_a_mask_leaves_its_row_what_it_allows_and_other_rows_alone() -> None:
    free = chunk([9], table=[0], sampling=GREEDY)
    held = msgspec.structs.replace(free, allowed=bytes((0, 1, 0, 1, 0)))
    penalties = penalties_of([free, held], eos_token_ids=(), vocab_size=5)
    logits_RV = torch.arange(10.0).view(2, 5)
    shaped_RV = penalised(logits_RV, penalties, HostDevice())
    assert shaped_RV.tolist() == [[0, 1, 2, 3, 4], [-math.inf, 6, -math.inf, 8, -math.inf]]
    assert logits_RV[1, 0] == 5
    assert not penalties_of([free], eos_token_ids=(), vocab_size=5)
    with pytest.raises(ValueError, match="allowed: 5 ids of a vocabulary of 6"):
        penalties_of([held], eos_token_ids=(), vocab_size=6)


def test_a_ban_that_leaves_nothing_of_what_is_allowed_is_lifted() -> None:
    rule = Sampling(seed=0, max_tokens=9, min_tokens=5, stop_token_ids=(1, 3))
    held = chunk([9], table=[0], sampling=rule)
    held = msgspec.structs.replace(held, allowed=bytes((0, 1, 0, 1, 0)))
    penalties = penalties_of([held], eos_token_ids=(), vocab_size=5)
    shaped_RV = penalised(torch.zeros(1, 5), penalties, HostDevice())
    assert shaped_RV.tolist() == [[-math.inf, 0, -math.inf, 0, -math.inf]]


# -- the upload -----------------------------------------------------------------------------


def test_an_upload_arrives_as_aligned_views_of_one_buffer() -> None:
    rule = Sampling(seed=2**64 - 1, max_tokens=1, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1)
    parts = [chunk([5, 6, 7], table=[3, 1], sampling=rule), chunk([9], start=9, table=[2, 0, 4])]
    step = step_arrays(parts, LAYOUT, feeds=[NO_FEED, 4], keeps=[0, 1])
    upload = Upload(HostDevice(), num_bytes=4096)
    sent = upload.send(step)
    for field in fields(StepFields):
        tensor, array = getattr(sent, field.name), getattr(step, field.name)
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.data_ptr() % ALIGN_BYTES == upload._there.data_ptr() % ALIGN_BYTES
    assert sent.feed_T.tolist() == [-1, -1, -1, 4]
    assert sent.seed_R.tolist() == [-1, 0]


def test_what_a_captured_step_reads_stays_where_it_is_however_long_the_tables() -> None:
    upload = Upload(HostDevice(), num_bytes=1 << 14)
    places = set()
    for num_blocks in (1, 5, 30):
        empty = empty_decode(8, num_groups=2, num_blocks=num_blocks, nowhere=9)
        sent = upload.send(empty)
        places.add(tuple(getattr(sent, field.name).data_ptr() for field in fields(StepFields)))
    assert len(places) == 1


def test_the_largest_step_fits_the_buffer_made_for_it() -> None:
    layout = KvLayout(
        num_layers=1, num_kv_heads=1, head_dim=2, block_tokens=4, dtype="float32", num_groups=3
    )
    for sampling in (GREEDY, None):
        parts = [chunk([1] * 5, start=251, table=range(192), sampling=sampling)] * 8
        step = step_arrays(parts, layout, feeds=[NO_FEED] * 8, keeps=[0] * (8 if sampling else 0))
        num_bytes = upload_bytes(max_tokens=40, max_rows=8, max_blocks=64, num_groups=3)
        Upload(HostDevice(), num_bytes=num_bytes).send(step)


def test_rows_that_fill_up_read_nothing_and_write_nothing() -> None:
    step = step_arrays([chunk([9], start=5, table=[2, 1])], LAYOUT, feeds=[NO_FEED], keeps=[3])
    full = padded(step, 4, nowhere=8)
    assert full.slots_GT.tolist() == [[step.slots_GT[0, 0], -1, -1, -1]]
    assert full.ends_S.tolist() == [6, 0, 0, 0] and full.starts_S1.tolist() == [0, 1, 2, 3, 4]
    assert (
        full.keep_R.tolist() == [3, 8, 8, 8]
        and full.tables_GSB[0].tolist() == [[2, 1, *[0] * 14]] + [[0] * 16] * 3
    )
    for field in fields(StepFields):
        assert getattr(full, field.name).dtype == getattr(step, field.name).dtype, field.name
