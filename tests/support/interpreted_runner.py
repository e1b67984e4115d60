"""The device runner with the Triton kernels and their choice of tokens, by Triton's interpreter.

    TRITON_INTERPRET=1 python -m support.interpreted_runner

Padded decode steps launched ahead, against the torch runner; ends with a traceback where a token
differs. Started by `tests/kernels/test_device_runner.py`.
"""

import tempfile
from importlib import import_module
from pathlib import Path

import torch
from support.device_steps import EOS, GREEDY, LIMITS, SEEDED, ahead, all_with, expected
from support.forwards import pool_for
from support.host_device import HostDevice

from engine.checkpoint.load import load_model
from engine.runner.gpu.runner import DeviceRunner
from protocol.messages import Sampling
from tools.make_checkpoint import Shape, make_checkpoint

NUM_STEPS = 4
PENALISED = Sampling(
    seed=0, max_tokens=9, temperature=0.0, repetition_penalty=1.8, frequency_penalty=0.7
)
SHAPE = Shape(family="qwen3", layers=1, hidden=32, heads=2, kv_heads=1, mlp=32)


def main() -> None:
    torch.set_num_threads(1)
    device = HostDevice()
    ops = import_module("engine.ops.triton.ops").TritonOps(io_dtype=torch.float32)
    sampler = import_module("engine.sampling.triton_sample").sample_tokens
    masker = import_module("engine.sampling.triton_mask").mask_tokens
    penaliser = import_module("engine.sampling.triton_penalties").penalise
    with tempfile.TemporaryDirectory() as directory:
        make_checkpoint(Path(directory), SHAPE)
        model = load_model(Path(directory), dtype="float32", ops=ops, device=device.where)
        twin = load_model(Path(directory), dtype="float32", native=False)
    for rule in (GREEDY, SEEDED, PENALISED):
        runner = DeviceRunner(
            model,
            pool_for(model),
            device=device,
            sampler=sampler,
            masker=masker,
            penaliser=penaliser,
            limits=LIMITS,
            eos_token_ids=EOS,
        )
        runner.capture(limit_bytes=1 << 40)
        rules = all_with(rule)
        tokens, want = ahead(runner, rules, count=NUM_STEPS), expected(twin, rules, count=NUM_STEPS)
        assert tokens == want, (tokens, want)
    print("equal")


if __name__ == "__main__":
    main()
