"""Measures launch parameters on this GPU and writes them where `engine.ops.triton.launch` looks.

    python -m tools.tune --kernel attention --heads 32 --kv-heads 8 --head-dim 128

Needs an NVIDIA GPU that nobody else uses meanwhile. A candidate counts only when its result is
that of the default parameters; one that the chip has no room for is passed over. Entries of other
kernels and shapes in the file stay.

Not tuned: the size of attention's splits (`engine.ops.work`), for the order of a row's sums follows
it. A linear has an entry only where our kernel is faster than cuBLAS, at the shapes of an 8B Llama.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from engine.ops.triton import launch
from protocol.process.triton_cache import use_own_triton_cache
from tools.tune.attention import attention_subjects
from tools.tune.experts import experts_subjects
from tools.tune.linears import CUBLAS, linears_subjects
from tools.tune.sample import sample_subjects
from tools.tune.step import step_subjects
from tools.tune.subject import Measured, Subject, on_gpu, tune, written

KERNELS = ("attention", "experts", "linear", "sample", "step")


def subjects_of(kernel: str, asked: argparse.Namespace) -> Iterator[Subject]:
    match kernel:
        case "attention":
            return attention_subjects(asked.heads, asked.kv_heads, asked.head_dim)
        case "experts":
            return experts_subjects(asked.experts, asked.choices, asked.width, asked.hidden)
        case "linear":
            return linears_subjects()
        case "step":
            return step_subjects(asked.heads, asked.kv_heads, asked.head_dim)
        case _:
            return sample_subjects(asked.vocab)


def kept(measured: Iterable[Measured]) -> Iterator[Measured]:
    """What an entry is written of: a linear that cuBLAS computes faster has none."""
    return (one for one in measured if one.kernel != "linear" or one.launch != CUBLAS)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kernel", choices=KERNELS, action="append", help="default: all")
    for name, default in (
        ("heads", 32), ("kv-heads", 8), ("head-dim", 128), ("experts", 128), ("choices", 8),
        ("width", 2_048), ("hidden", 768), ("vocab", 151_936), ("seconds", 300),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--most", type=int, help="candidates of a shape; default: all")
    parser.add_argument("--out", type=Path, default=launch.TUNED, help="folder of the files")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    if not torch.cuda.is_available():
        print("tune: no NVIDIA GPU here, nothing can be measured", file=sys.stderr)
        return 1
    use_own_triton_cache()
    chosen = (one for name in asked.kernel or KERNELS for one in subjects_of(name, asked))
    file = asked.out / launch.file_name(torch.cuda.get_device_capability())
    device = torch.cuda.get_device_name()
    measured = list(tune(chosen, on_gpu, within_s=asked.seconds, most=asked.most))
    for one in measured:
        print(f"{one.kernel} {one.shape}: {one.median_us:.1f} us, default {one.default_us:.1f} us")
    print(f"{written(file, kept(measured), device=device)} entries to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
