"""Tunes one kernel into OUT and tells a row an entry: `... OUT --kernel NAME --seconds N [--toy]`.

Processes compile the candidates side by side before the first is measured, for half of the time at
most. The table also goes where the engine looks for it. With --toy Triton's interpreter runs small
shapes in this process: its times say nothing, and the table goes to OUT alone.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch comes after the environment is set
    from engine.ops.triton.launch import Launch

MOST = 32
"""Candidates of a shape: two seconds each to compile, on one core, and a tenth to measure."""
TOY = ("--heads", "2", "--kv-heads", "1", "--head-dim", "16", "--vocab", "512")
TOY_CONTEXT = 256
SHARE = "--share"
"""Of a process that compiles: its number, and of how many."""


def main() -> int:
    arguments = sys.argv[1:]
    is_toy = "--toy" in arguments
    out, *arguments = [argument for argument in arguments if argument != "--toy"]
    if SHARE in arguments:
        at = arguments.index(SHARE)
        number, of = map(int, arguments[at + 1 : at + 3])
        return _compile(arguments[:at], number=number, of=of)
    if is_toy:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
        arguments += TOY
    return _tune(Path(out), arguments, is_toy=is_toy)


def compile_beside(arguments: Sequence[str], *, processes: int, within_s: float) -> int:
    """How many of so many processes of this module ended well in time; the others are ended."""
    until_s = time.monotonic() + within_s
    command = [sys.executable, "-m", "tools.first_gpu.tuned", "nowhere", *arguments, SHARE]
    started = [subprocess.Popen([*command, str(n), str(processes)]) for n in range(processes)]
    ended_well = 0
    for process in started:
        try:
            ended_well += process.wait(max(0.0, until_s - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return ended_well


def _compile(arguments: list[str], *, number: int, of: int) -> int:
    from tools.tune import subject
    from tools.tune.__main__ import parsed, subjects_of

    asked = parsed(arguments)
    chosen = (one for kernel in asked.kernel for one in subjects_of(kernel, asked))
    count = subject.compile_share(chosen, subject.once, number=number, of=of, most=MOST)
    print(f"process {number} compiled {count} candidates")
    return 0


def _tune(out: Path, arguments: list[str], *, is_toy: bool) -> int:
    import torch

    from bench.row import Row, tell
    from engine.ops.triton import launch
    from tools.tune import subject
    from tools.tune.__main__ import kept, parsed, subjects_of

    asked = parsed(arguments)
    within_s = asked.seconds
    if is_toy:
        _make_small()
    else:
        began_s, cores = time.monotonic(), os.cpu_count() or 1
        compile_beside(arguments, processes=max(1, cores - 1), within_s=within_s / 2)
        within_s -= time.monotonic() - began_s
    device = "the host" if is_toy else torch.cuda.get_device_name()
    name = "toy.json" if is_toy else launch.file_name(torch.cuda.get_device_capability())
    chosen = (one for kernel in asked.kernel for one in subjects_of(kernel, asked))
    measure = subject.once if is_toy else subject.on_gpu
    measured = list(subject.tune(chosen, measure, within_s=within_s, most=MOST))
    for folder in (out,) if is_toy else (out, launch.TUNED):
        subject.written(folder / name, kept(measured), device=device)
    for one in measured:
        tell(Row(
            part=f"{one.kernel} {one.shape}", result=f"{one.median_us:.1f} us, {told(one.launch)}",
            limit=f"default {one.default_us:.1f} us",
        ))  # fmt: skip
    return 0 if measured else 1


def _make_small() -> None:
    from tools.tune import attention, linears, sample, subject

    subject.DEVICE, attention.CONTEXT, sample.NUM_ROWS = "cpu", TOY_CONTEXT, 2
    linears.LINEARS, linears.WEIGHT_BYTES = (("plain", 64, 64), ("head", 64, 64)), 1


def told(launch: "Launch") -> str:
    """In a table; without a tile it stands for cuBLAS."""
    sizes = {"m": launch.block_m, "n": launch.block_n, "k": launch.block_k}
    tile = " ".join(f"{name} {size}" for name, size in sizes.items() if size)
    splits = f", {launch.splits} splits" if launch.splits > 1 else ""
    stages = f"{launch.num_warps} warps, {launch.num_stages} stages{splits}"
    return f"{tile}, {stages}" if tile else "cuBLAS"


if __name__ == "__main__":
    sys.exit(main())
