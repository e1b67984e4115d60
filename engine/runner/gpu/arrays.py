"""A step's numbers: as arrays on the host, and after one upload as tensors on the device.

Pure. The one declaration of them is `StepFields`: how a step is filled up, how much room it needs
and what of it a forward and a sampler take follow from that.
"""

# Shapes: T tokens, S sequences, G KV groups, B blocks of the longest table, R rows sampled. In a
# decode step T, S and R are equal. A field's name ends in the letters of its axes.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Chunk
from engine.kvcache.windows import Window
from engine.ops.inputs import ForwardInputs, forward_inputs, with_work
from engine.ops.work import AttentionWork, decode_work
from engine.sampling.rows import RowRules
from engine.sampling.sampler import MOST
from protocol.layout import KvLayout
from protocol.messages import Sampling

Array = NDArray[Any]
A = TypeVar("A")
NO_FEED = -1
"""The token is the uploaded one."""
WIDTH_GRAIN = 16
"""Tables are a multiple of it wide: kernels are compiled anew for strides that are none."""
NO_SLOT = -1
"""Nothing is written for this token: it fills a batch up."""


def _of(dtype: str, *, fill: float = 0) -> Mapping[str, Any]:
    """Of a field: its dtype, and what a row that only fills a batch up has there."""
    return {"dtype": np.dtype(dtype), "fill": fill}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFields(Generic[A]):
    """Packed in this order; the tables last, because they alone differ in size between two decode
    steps of one batch size."""

    token_ids_T: A = field(metadata=_of("int64"))
    feed_T: A = field(metadata=_of("int64", fill=NO_FEED))
    """Place among the last tokens to take the id from, or NO_FEED."""
    positions_T: A = field(metadata=_of("int64"))
    reaches_T: A | None = field(default=None, metadata=_of("int64"))
    """None where the model takes none."""
    slots_GT: A = field(metadata=_of("int64", fill=NO_SLOT))
    starts_S1: A = field(metadata=_of("int32"))
    ends_S: A = field(metadata=_of("int32"))
    slots_GS1: A = field(metadata=_of("int32"))
    """Places of attention's partial results (`engine.ops.work`)."""
    rows_R: A = field(metadata=_of("int64"))
    keep_R: A = field(metadata=_of("int64"))
    """Place among the last tokens for the token sampled."""
    temperature_R: A = field(metadata=_of("float32"))
    top_p_R: A = field(metadata=_of("float32", fill=1))
    min_p_R: A = field(metadata=_of("float32"))
    top_k_R: A = field(metadata=_of("int32"))
    """0: all."""
    seed_R: A = field(metadata=_of("int64"))
    """The same 64 bits."""
    position_R: A = field(metadata=_of("int64"))
    tables_GSB: A = field(metadata=_of("int32"))
    work: AttentionWork
    """What the host knows of attention's work; of a captured step its graph knows better."""

    def values(self) -> dict[str, A]:
        """Those that there are, by name."""
        named = {name: getattr(self, name) for name in NAMES}
        return {name: value for name, value in named.items() if value is not None}

    def inputs(self: "StepTensors", token_ids_T: Tensor, tables_GSB: Tensor) -> ForwardInputs:
        """Of a forward over these ids and tables."""
        same = {name: getattr(self, name) for name in (*_INPUTS, "work")}
        return ForwardInputs(**same | {"token_ids_T": token_ids_T, "tables_GSB": tables_GSB})

    def rules(self: "StepTensors", num_rows: int) -> RowRules:
        """Of the first `num_rows`; those after them fill the batch up."""
        return RowRules(**{name: getattr(self, name)[:num_rows] for name in _RULES})


StepArrays = StepFields[Array]
StepTensors = StepFields[Tensor]
_ARRAYS = tuple(one for one in fields(StepFields) if one.metadata)
NAMES = tuple(one.name for one in _ARRAYS)
_DTYPES: Mapping[str, np.dtype[Any]] = {one.name: one.metadata["dtype"] for one in _ARRAYS}
_FILLS: Mapping[str, float] = {one.name: one.metadata["fill"] for one in _ARRAYS}
_INPUTS = tuple(one.name for one in fields(ForwardInputs) if one.name in NAMES)
_MOST_TOKENS = np.iinfo(np.int32).max
_RULES = tuple(one.name for one in fields(RowRules))


def step_arrays(
    chunks: Sequence[Chunk], layout: KvLayout, *, feeds: Sequence[int], keeps: Sequence[int],
    windows: Sequence[Window] = (), reaches: bool = False,
) -> StepArrays:  # fmt: skip
    """`feeds` has one place for each chunk, NO_FEED without a pending token; `keeps` one for each
    that samples; `windows` one for each KV group, or none has one. Raises ValueError as
    `engine.ops.inputs.forward_inputs`."""
    inputs = forward_inputs(
        chunks, block_tokens=layout.block_tokens, num_groups=layout.num_groups, reaches=reaches
    )
    inputs = with_work(inputs, windows or (None,) * layout.num_groups)
    assert inputs.work is not None
    asking = [chunk for chunk in chunks if chunk.sampling is not None]
    rules = [_rule(chunk) for chunk in asking]
    rows: dict[str, Sequence[float] | Array] = {
        "keep_R": keeps,
        "temperature_R": _finite([rule.temperature for rule in rules]),
        "top_p_R": _finite([rule.top_p for rule in rules]),
        "min_p_R": _finite([rule.min_p for rule in rules]),
        "top_k_R": [max(0, min(rule.top_k, _MOST_TOKENS)) for rule in rules],
        "seed_R": [_signed(rule.seed) for rule in rules],
        "position_R": [chunk.position for chunk in asking],
    }
    given = {name: getattr(inputs, name) for name in _INPUTS}
    arrays: dict[str, Array] = {k: v.numpy() for k, v in given.items() if v is not None}
    arrays |= {name: np.array(values, _DTYPES[name]) for name, values in rows.items()}
    arrays["feed_T"] = np.repeat(np.array(feeds, np.int64), [len(one.token_ids) for one in chunks])
    more = -inputs.tables_GSB.shape[2] % WIDTH_GRAIN
    arrays["tables_GSB"] = np.pad(arrays["tables_GSB"], ((0, 0), (0, 0), (0, more)))
    return StepFields(**arrays, work=inputs.work)


def padded(step: StepArrays, size: int, *, nowhere: int) -> StepArrays:
    """A decode step filled up to `size` rows that read no KV, write none, and whose tokens are
    kept at the place `nowhere`."""
    more = size - len(step.ends_S)
    fills = {**_FILLS, "keep_R": nowhere}
    arrays = {name: _filled(array, more, fills[name]) for name, array in step.values().items()}
    arrays["starts_S1"], arrays["rows_R"] = np.arange(size + 1, dtype=np.int32), np.arange(size)
    last_G1 = step.slots_GS1[:, -1:]
    more_slots = last_G1 + np.arange(1, more + 1, dtype=np.int32)  # an item each, of no key
    arrays["slots_GS1"] = np.concatenate((step.slots_GS1, more_slots), axis=1)
    return StepFields(**arrays, work=step.work)


def _filled(array: Array, more: int, value: float) -> Array:
    """With `more` rows of `value`, which come after the KV groups."""
    axis = min(1, array.ndim - 1)
    shape = (*array.shape[:axis], more, *array.shape[axis + 1 :])
    return np.concatenate((array, np.full(shape, value, array.dtype)), axis=axis)


def empty_decode(
    size: int, *, num_groups: int, num_blocks: int, nowhere: int, reaches: bool = False
) -> StepArrays:
    """A decode step of nothing but rows that fill up, its tables `num_blocks` wide."""
    sizes = {"T": 0, "S": 0, "R": 0, "G": num_groups, "B": num_blocks}
    names = [name for name in NAMES if reaches or name != "reaches_T"]
    nothing = {name: np.empty(_shape(name, sizes), _DTYPES[name]) for name in names}
    nothing["slots_GS1"] = np.zeros((num_groups, 1), np.int32)
    work = decode_work(size, num_groups=num_groups, max_context_tokens=1)
    return padded(StepFields(**nothing, work=work), size, nowhere=nowhere)


def most_bytes(*, max_tokens: int, max_rows: int, max_blocks: int, num_groups: int) -> int:
    """Of every step of at most so many tokens and sequences, with tables so wide, unaligned."""
    tokens = max(max_tokens, max_rows)
    sizes = {"T": tokens, "S": max_rows, "R": max_rows, "G": num_groups, "B": max_blocks}
    items = {name: prod(_shape(name, sizes)) for name in NAMES}
    items["starts_S1"] += 1
    items["slots_GS1"] += num_groups
    return sum(items[name] * _DTYPES[name].itemsize for name in NAMES)


def _shape(name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """As many along each axis as `sizes` says; S1 counts as S."""
    axes = name.rpartition("_")[2].removesuffix("1")
    return tuple(sizes[axis] for axis in axes)


def widest_table(max_context_tokens: int, layout: KvLayout) -> int:
    """Blocks of one group that a sequence may have, and the one it grows into."""
    num_blocks = 1 + -(-max_context_tokens // layout.block_tokens)
    return -(-num_blocks // WIDTH_GRAIN) * WIDTH_GRAIN


def is_decode(chunks: Sequence[Chunk]) -> bool:
    """Whether every chunk is one token that samples the next."""
    return all(len(chunk.token_ids) == 1 and chunk.sampling is not None for chunk in chunks)


def _rule(chunk: Chunk) -> Sampling:
    assert chunk.sampling is not None
    return chunk.sampling


def _finite(values: Sequence[float]) -> Array:
    """Of each what `engine.sampling.sampler.as_float32` says, before it is rounded."""
    return np.fmax(np.minimum(np.array(values, np.float64), MOST), -MOST)


def _signed(seed: int) -> int:
    """The 64 bits that key the generator, as an int64 holds them."""
    bits = seed & (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits
