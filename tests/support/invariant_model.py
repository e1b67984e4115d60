"""Bits of a tiny model's logits in the batch-invariant mode, by Triton's interpreter.

    TRITON_INTERPRET=1 python -m support.invariant_model

A token alone and among others, a prompt whole and in chunks, and a prompt that another pool
computed. Started by `tests/kernels/test_batch_invariance.py`; ends with a traceback where a bit
differs.
"""

# Shapes: V vocabulary.

import tempfile
from pathlib import Path

import torch
from support.forwards import chunk, logits, pool_for
from support.kernel_models import TOKENS, model_with
from support.row_products import placeless_products
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.models.model import Model
from engine.ops.triton.ops import TritonOps
from tools.make_checkpoint import Shape, make_checkpoint

SHAPES = (
    Shape(family="qwen3", layers=1, hidden=96, heads=4, kv_heads=2, mlp=80),
    Shape(family="qwen3_moe", layers=1, hidden=32, heads=2, kv_heads=1),
)
PROMPT, NEXT = TOKENS[:17], TOKENS[17]
TABLE, OTHERS = [2, 0, 1], [[n, n + 1, n + 2] for n in range(3, 60, 3)]


def after(model: Model, *lengths: int) -> tuple[KvPool, Tensor]:
    """The prompt computed in chunks of these lengths, and the logits of its last token."""
    pool, start = pool_for(model), 0
    for length in lengths:
        tokens = PROMPT[start : start + length]
        answered_RV = logits(model, pool, [chunk(tokens, start=start, table=TABLE)])
        start += length
    assert start == len(PROMPT)
    return pool, answered_RV[-1]


def beside(model: Model, pool: KvPool, count: int) -> Tensor:
    """Logits of the next token with `count` prompts of others in the step, of differing lengths."""
    mine = chunk([NEXT], start=len(PROMPT), table=TABLE)
    others = [
        chunk(TOKENS[: 1 + n % 3], table=table, sequence=str(n))
        for n, table in enumerate(OTHERS[:count])
    ]
    before, behind = others[: count // 2], others[count // 2 :]
    place = sum(len(one.token_ids) for one in before)
    return logits(model, pool, [*before, mine, *behind])[place]


def check(model: Model) -> None:
    pool, whole_V = after(model, 17)
    for lengths in ((9, 7, 1),):
        cut, cut_V = after(model, *lengths)
        assert cut_V.equal(whole_V), f"a prompt in chunks of {lengths}"
        assert cut.tensor[TABLE].nan_to_num().equal(pool.tensor[TABLE].nan_to_num())
    alone_V = beside(model, pool, 0)
    assert not alone_V.isnan().any()
    for count in (4,):
        apart = pool_for(model)  # a decode worker's: the blocks come from elsewhere
        apart.tensor[TABLE] = pool.tensor[TABLE]
        assert beside(model, apart, count).equal(alone_V), f"a token beside {count} prompts"


def main() -> None:
    torch.set_num_threads(1)
    ops = TritonOps(io_dtype=torch.float32, batch_invariant=True)
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as directory, placeless_products():
            make_checkpoint(Path(directory), shape)
            check(model_with(Path(directory), ops))


if __name__ == "__main__":
    main()
