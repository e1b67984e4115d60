"""`python -m tools.first_gpu STAGE OUT`: one stage, at most ten minutes; a table last.

`tools/first_gpu.sh` starts it where nothing but torch is installed. Into OUT go the table
(STAGE.txt, STAGE.json), results/, tuned/, logs/ and the compiled kernels as one file, which the
next stage takes up again. With --toy tiny shapes run on the host: it shows that every part runs,
its numbers say nothing. Ends with 1 when a part failed or did not pass; the others run all the
same.
"""

import argparse
import os
import sys
from pathlib import Path

from protocol.process.triton_cache import use_own_triton_cache
from tools.first_gpu import kernel_cache
from tools.first_gpu.check import check
from tools.first_gpu.profile import profile
from tools.first_gpu.serve import serve
from tools.first_gpu.stage import is_passed, run_stage, write_table
from tools.first_gpu.tune import tune
from tools.python_path import ROOT, python_path

STAGES = {"check": check, "profile": profile, "tune": tune, "serve": serve}
# Two ranks may share a GPU from NCCL 2.30 on, with few thread blocks each.
NCCL = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_NVLS_ENABLE": "0"}


def main() -> int:
    asked = _arguments()
    out: Path = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    paths = {"PYTHONPATH": python_path(ROOT, ROOT / "tests"), "BENCH_RESULTS": str(out / "results")}
    os.environ.update(NCCL | paths)
    if asked.toy:  # tensors are tiny: a second thread would only wait for a core
        os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)
    kernels = use_own_triton_cache()
    packed = out / kernel_cache.NAME
    taken = kernel_cache.unpack([*asked.kernels, packed, ROOT / ".wheels" / packed.name], kernels)
    print(f"kernels compiled before: {taken or 'none taken up'}", flush=True)
    stage = STAGES[asked.stage](out, toy=asked.toy)
    outcomes = run_stage(stage, out)
    print(f"{kernel_cache.pack(kernels, packed)} compiled kernels in {packed}", flush=True)
    print(write_table(stage, outcomes, out), flush=True)
    return 0 if is_passed(outcomes) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("out", type=Path, help="folder of all that is written")
    parser.add_argument("--toy", action="store_true", help="tiny shapes on the host")
    parser.add_argument(
        "--kernels", type=Path, action="append", default=[], metavar="FILE",
        help="kernels packed by an earlier stage; default: OUT's, else .wheels/'s",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
