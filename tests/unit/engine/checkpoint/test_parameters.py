"""A parameter names its tensors and loads them, whatever their format and however they lie."""

# Shapes: K features in, N features out.

import torch
from torch import Tensor

from engine.checkpoint.parameters import LinearSpec, Pairs
from engine.checkpoint.quant.mxfp4 import dequantise
from engine.checkpoint.shard import Cut

GENERATOR = torch.Generator().manual_seed(2)
BLOCKS = torch.randint(256, (4, 2, 16), generator=GENERATOR, dtype=torch.uint8)
SCALES = torch.randint(120, 130, (4, 2), generator=GENERATOR, dtype=torch.uint8)
WEIGHT_NK = torch.randn(4, 6, generator=GENERATOR)


def read_from(tensors: dict[str, Tensor], name: str, row: int | None) -> Tensor:
    return tensors[name] if row is None else tensors[name][row]


def test_a_linear_of_floats_is_one_tensor_and_its_bias() -> None:
    linear = LinearSpec(name="q", shape=(4, 6), bias=True, cut=Cut(axis=1))
    shapes = {name: spec.shape for name, spec in linear.tensors.items()}
    assert shapes == {"q.weight": (4, 6), "q.bias": (4,)}
    assert linear.tensors["q.bias"].cut == Cut(once=True)
    got = linear.load_weight(
        lambda name, dtype, row: read_from({"q.weight": WEIGHT_NK}, name, row), torch.float32
    )
    assert torch.equal(got, WEIGHT_NK)


def test_a_dense_linear_may_have_a_format_of_fewer_bits() -> None:
    linear = LinearSpec(name="q", shape=(4, 64), format="mxfp4")
    tensors = {"q_blocks": BLOCKS, "q_scales": SCALES}
    shapes = {name: spec.shape for name, spec in linear.tensors.items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert all(spec.quantised for spec in linear.tensors.values())
    got = linear.load_weight(lambda name, dtype, row: read_from(tensors, name, row), torch.bfloat16)
    assert torch.equal(got, dequantise(BLOCKS, SCALES).bfloat16())


def test_a_linear_of_a_stack_is_one_row_of_it_perhaps_turned() -> None:
    linear = LinearSpec(
        name="up", shape=(4, 6), bias=True, cut=Cut(axis=0), num_stacked=3, transposed=True
    )
    shapes = {name: spec.shape for name, spec in linear.tensors.items()}
    assert shapes == {"up": (3, 6, 4), "up_bias": (3, 4)}
    assert linear.tensors["up"].cut == Cut(axis=1)
    stack = torch.stack([WEIGHT_NK.T + number for number in range(3)])
    got = linear.load_weight(
        lambda name, dtype, row: read_from({"up": stack}, name, row), torch.float32, 2
    )
    assert torch.equal(got, WEIGHT_NK + 2)


def test_pairs_side_by_side_are_put_half_a_turn_apart_head_by_head() -> None:
    pairs = Pairs(head_dim=6, turned=4)
    linear = LinearSpec(name="q", shape=(12, 1), bias=True, pairs=pairs)
    tensors = {"q.weight": torch.arange(12.0)[:, None], "q.bias": torch.arange(12.0)}

    def read(name: str, dtype: torch.dtype, row: int | None) -> Tensor:
        return read_from(tensors, name, row)

    expected = [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    assert linear.load_weight(read, torch.float32).flatten().tolist() == expected
    bias = linear.load_bias(read)
    assert bias is not None and bias.tolist() == expected
