"""Runs the engine's Triton kernels beside their torch twins: by Triton's interpreter, or on a GPU.

    TRITON_INTERPRET=1 python -m support.engine_kernels NAME ...

Started by `tests/kernels/test_engine_kernels.py`; a name is that of a function in one of the
modules of checks. One JSON line a check on stdout, [name, why it failed or ""]. Toy sizes: a
program takes the interpreter milliseconds.
"""

import json
import sys
import traceback

import torch
from support import (
    attention_checks,
    linear_checks,
    sampling_checks,
    sampling_laws,
    sampling_passes,
    step_checks,
)
from support.kernel_cases import CHECKS, DEVICE

MODULES = (
    step_checks, linear_checks, attention_checks, sampling_checks, sampling_passes, sampling_laws,
)  # fmt: skip


def why_not(name: str) -> str:
    try:
        CHECKS[name]()
    except Exception:  # the checks after it are still worth running
        return traceback.format_exc()[-3000:]
    return ""


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_device(DEVICE)
    for name in sys.argv[1:] or CHECKS:
        print(json.dumps([name, why_not(name)]), flush=True)


if __name__ == "__main__":
    main()
