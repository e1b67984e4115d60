"""Tunes one kernel into OUT and tells a row an entry: `... OUT --kernel NAME --seconds N [--toy]`.

The table also goes where the engine looks for it. With --toy Triton's interpreter runs small
shapes: its times say nothing, and the table goes to OUT alone.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch comes after the environment is set
    from torch import Tensor

TOY = ("--heads", "2", "--kv-heads", "1", "--head-dim", "16", "--vocab", "512")

TOY_CONTEXT = 256


def main() -> int:
    arguments = sys.argv[1:]
    is_toy = "--toy" in arguments
    out, *arguments = [argument for argument in arguments if argument != "--toy"]
    if is_toy:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
        arguments += TOY
    return _tune(Path(out), arguments, is_toy=is_toy)


def _tune(out: Path, arguments: list[str], *, is_toy: bool) -> int:
    import torch

    from bench.row import Row, tell
    from engine.ops.triton import launch
    from tools.tune import attention, subject
    from tools.tune.__main__ import parsed, subjects_of

    asked = parsed(arguments)
    if is_toy:
        subject.DEVICE, attention.CONTEXT = "cpu", TOY_CONTEXT
    device = "the host" if is_toy else torch.cuda.get_device_name()
    name = "toy.json" if is_toy else launch.file_name(torch.cuda.get_device_capability())
    chosen = (one for kernel in asked.kernel for one in subjects_of(kernel, asked))
    measure = once if is_toy else subject.on_gpu
    measured = list(subject.tune(chosen, measure, within_s=asked.seconds))
    for folder in (out,) if is_toy else (out, launch.TUNED):
        subject.written(folder / name, measured, device=device)
    for one in measured:
        tell(Row(
            part=f"{one.kernel} {one.shape}", result=f"{one.median_us:.1f} us by {one.launch}",
            limit=f"default {one.default_us:.1f} us",
        ))  # fmt: skip
    return 0 if measured else 1


def once(call: "Callable[[], Tensor]") -> "tuple[float, Tensor]":
    """Of the interpreter."""
    started_s = time.perf_counter()
    result = call()
    return 1e6 * (time.perf_counter() - started_s), result


if __name__ == "__main__":
    sys.exit(main())
