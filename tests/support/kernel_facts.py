"""What compiling tells of the kernels that `tools.predict` reckons with.

    PYTHONPATH=.:tests python -m support.kernel_facts > tools/predict/kernels.json

For sm_90, at the default launch parameters, with the shapes of an 8-billion-parameter Llama. Needs
ptxas, and no GPU.
"""

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support import ahead
from support.meta_steps import BF16, heads, inputs, layer_pool, meta

from engine.ops.contract import Norm
from engine.ops.triton import attention, gated, launch, norm, reduce_splits, rope_store
from engine.sampling import triton_bracket, triton_plan, triton_sample
from engine.sampling.rows import RowRules
from tools.predict.model import Kernel

ARCH = 90
ROWS, DIM, WIDTH, MLP, VOCAB, PROMPT = 32, 128, 4_096, 14_336, 128_256, 2_048
F32 = torch.float32
ATTENDING = ("attention_decode", "attention_chunk")
SAMPLING = (
    (triton_bracket, "tops_kernel"), (triton_bracket, "weigh_kernel"),
    (triton_plan, "plan_kernel"), (triton_plan, "narrow_kernel"), (triton_bracket, "pack_kernel"),
    (triton_sample, "choose_kernel"),
)  # fmt: skip
Recorded = tuple[ModuleType, str, Callable[[], object]]


class Silent:
    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **named: None


def sampled() -> object:
    rules = RowRules(
        temperature_R=meta(ROWS, dtype=F32), top_k_R=meta(ROWS, dtype=torch.int32),
        top_p_R=meta(ROWS, dtype=F32), min_p_R=meta(ROWS, dtype=F32),
        seed_R=meta(ROWS, dtype=torch.int64), position_R=meta(ROWS, dtype=torch.int64),
    )  # fmt: skip
    return triton_sample.sample_tokens(meta(ROWS, VOCAB, dtype=F32), rules)


def launches() -> dict[str, Recorded]:
    given, qkv = inputs(ROWS, ROWS), meta(ROWS, 48, DIM)
    turns, rms = meta(ROWS, 2, DIM // 2, dtype=F32), Norm(weight_K=meta(WIDTH), eps=1e-5)

    def attended() -> object:
        return attention.attention(qkv[:, :32], layer_pool(DIM), given, heads(DIM))

    def chunked() -> object:
        tokens = meta(PROMPT, 48, DIM)
        return attention.attention(tokens[:, :32], layer_pool(DIM), inputs(PROMPT, 1), heads(DIM))

    def stored() -> None:
        rope_store.rope_store(
            qkv.view(ROWS, -1), turns, heads(DIM), layer_pool(DIM), given.slots_GT[0]
        )

    def normed() -> object:
        return norm.normed(meta(ROWS, WIDTH, dtype=F32), meta(ROWS, WIDTH), rms, dtype=BF16)

    return {
        "norm": (norm, "norm_kernel", normed),
        "rope_store": (rope_store, "rope_store_kernel", stored),
        "attention_decode": (attention, "decode_kernel", attended),
        "attention_chunk": (attention, "chunk_kernel", chunked),
        "reduce_splits": (reduce_splits, "reduce_splits_kernel", attended),
        "gated": (
            gated, "gated_kernel", lambda: gated.gated(meta(ROWS, 2 * MLP), "silu", dtype=BF16)
        ),
        "sample_tops": (*SAMPLING[0], sampled),
        "sample_weigh": (*SAMPLING[1], sampled),
        "sample_pack": (*SAMPLING[-2], sampled),
    }  # fmt: skip


def load_bytes(name: str, call: ahead.Call, compiled: object) -> int:
    """In flight of one program: the copy groups that the loop leaves under way when it waits and
    those it has just asked for, else what a tile loads."""
    constants = call.constants
    if name in ATTENDING:
        text = compiled.asm["ttgir"]  # type: ignore[attr-defined]
        waits = [int(n) for n in re.findall(r"async_wait.*?num = (\d+)", text)]
        return (max(waits) + 1) * int(constants["BLOCK_N"]) * int(constants["BLOCK_D"]) * 2
    if name == "norm":
        return WIDTH * (4 + 2)
    if name == "rope_store":
        return 48 * DIM * 2
    if name == "gated":
        return 2 * 2 * int(constants.get("BLOCK", constants.get("TILE", 1_024)))
    if name == "reduce_splits":
        return 2 * (DIM + 2) * 4
    return triton_sample.DEFAULT.block_n * 4


def kernel_facts(folder: Path) -> dict[str, Kernel]:
    facts = {}
    for name, (module, kernel, launch_it) in launches().items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "capability", lambda device: (9, 0))
            patch.setattr(launch, "capability", lambda device: (9, 0))
            attention.bound_of.cache_clear()
            for other, silent in (
                *SAMPLING, (attention, "decode_kernel"), (attention, "chunk_kernel"),
                (reduce_splits, "reduce_splits_kernel"),
            ):  # fmt: skip
                if silent != kernel:
                    patch.setattr(other, silent, Silent())
            call = ahead.recorded(module, kernel, launch_it)[0]
        attention.bound_of.cache_clear()
        facts[name] = fact(name, call, folder)
    return facts


def fact(name: str, call: ahead.Call, folder: Path) -> Kernel:
    compiled = call.compiled(ARCH)
    taken = ahead.resources(compiled.asm["cubin"], folder)
    return Kernel(
        registers=taken["REG"],
        shared_bytes=taken["SHARED"] + compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        instructions=taken["INSTRUCTIONS"],
        load_bytes=load_bytes(name, call, compiled),
        loop_instructions=taken["LOOP"] if name in ATTENDING else 0,
        tile_rows=int(call.constants["BLOCK_M"]) if name in ATTENDING else 0,
        tile_keys=int(call.constants["BLOCK_N"]) if name in ATTENDING else 0,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        facts = {name: asdict(one) for name, one in kernel_facts(Path(folder)).items()}
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
