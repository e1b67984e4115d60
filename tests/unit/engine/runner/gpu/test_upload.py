"""A step's numbers reach the device as they are, in one buffer made for the largest."""

import numpy as np
import pytest
from support.forwards import GREEDY, chunk
from support.host_device import HostDevice
from support.words import LAYOUT

from engine.runner.gpu.arrays import (
    NO_FEED,
    empty_decode,
    padded,
    step_arrays,
)
from engine.runner.gpu.upload import ALIGN_BYTES, Upload, upload_bytes
from protocol.layout import KvLayout
from protocol.messages import Sampling


@pytest.mark.parametrize("reaches", [False, True])
def test_an_upload_arrives_as_aligned_views_of_one_buffer(reaches: bool) -> None:
    rule = Sampling(seed=2**64 - 1, max_tokens=1, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1)
    parts = [chunk([5, 6, 7], table=[3, 1], sampling=rule), chunk([9], start=9, table=[2, 0, 4])]
    step = step_arrays(parts, LAYOUT, feeds=[NO_FEED, 4], keeps=[0, 1], reaches=reaches)
    upload = Upload(HostDevice(), num_bytes=4096)
    sent = upload.upload_step(step)
    start = sent.token_ids_T.data_ptr()
    assert sent.values().keys() == step.values().keys()
    assert (sent.reaches_T is not None) == reaches
    for name, array in step.values().items():
        tensor = sent.values()[name]
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert (tensor.data_ptr() - start) % ALIGN_BYTES == 0
    assert sent.feed_T.tolist() == [-1, -1, -1, 4]
    assert sent.seed_R.tolist() == [-1, 0]


@pytest.mark.parametrize("reaches", [False, True])
def test_what_a_captured_step_reads_stays_where_it_is_however_long_the_tables(
    reaches: bool,
) -> None:
    upload = Upload(HostDevice(), num_bytes=1 << 14)
    places = set()
    for num_blocks in (1, 5, 30):
        empty = empty_decode(8, num_groups=2, num_blocks=num_blocks, nowhere=9, reaches=reaches)
        sent = upload.upload_step(empty)
        places.add(tuple(tensor.data_ptr() for tensor in sent.values().values()))
    assert len(places) == 1


def test_the_largest_step_fits_the_buffer_made_for_it() -> None:
    layout = KvLayout(
        num_layers=1, num_kv_heads=1, head_dim=2, block_tokens=4, dtype="float32", num_groups=3
    )
    for sampling in (GREEDY, None):
        parts = [chunk([1] * 5, start=251, table=range(192), sampling=sampling)] * 8
        keeps = [0] * (8 if sampling else 0)
        step = step_arrays(parts, layout, feeds=[NO_FEED] * 8, keeps=keeps, reaches=True)
        num_bytes = upload_bytes(max_tokens=40, max_rows=8, max_blocks=64, num_groups=3)
        Upload(HostDevice(), num_bytes=num_bytes).upload_step(step)


def test_rows_that_fill_up_read_nothing_and_write_nothing() -> None:
    part = chunk([9], start=5, table=[2, 1])
    step = step_arrays([part], LAYOUT, feeds=[NO_FEED], keeps=[3], reaches=True)
    full = padded(step, 4, nowhere=8)
    assert full.slots_GT.tolist() == [[step.slots_GT[0, 0], -1, -1, -1]]
    assert full.ends_S.tolist() == [6, 0, 0, 0] and full.starts_S1.tolist() == [0, 1, 2, 3, 4]
    assert full.slots_GS1.tolist() == [[0, 1, 2, 3, 4]], "an item each, of no key"
    assert (
        full.keep_R.tolist() == [3, 8, 8, 8]
        and full.tables_GSB[0].tolist() == [[2, 1, *[0] * 14]] + [[0] * 16] * 3
    )
    assert full.reaches_T is not None and full.reaches_T.tolist() == [6, 0, 0, 0]
    dtypes = {name: array.dtype for name, array in step.values().items()}
    assert {name: array.dtype for name, array in full.values().items()} == dtypes
