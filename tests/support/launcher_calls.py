"""What Triton's own launcher hands to CUDA, of a launch and of the same launched again: without a
GPU, by a library that stands for the driver's.

    python -m support.launcher_calls FOLDER

Prints a JSON list of calls of cuLaunchKernelEx, each the grid, the threads of a program, how many
attributes, and the low words of the kernel's parameters: a launch that compiles, one that was
looked up, for more rows, and that one as Triton makes it. The library is built in FOLDER.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import triton

from bench.gpu.eager_host import NoGpu, faked
from engine.ops.contract import Norm
from engine.ops.triton import norm

NUM_PARAMS = 7
"""Of the norm: residual, weight, result, width, scale, epsilon, and the parts' stride."""
MOST_CALLS = 8
SOURCE = """
#include <cuda.h>
unsigned calls[MOST_CALLS][8 + NUM_PARAMS], count;
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra) {
  unsigned *call = calls[count++];
  call[0] = c->gridDimX, call[1] = c->gridDimY, call[2] = c->gridDimZ;
  call[3] = c->blockDimX, call[4] = c->sharedMemBytes, call[5] = c->numAttrs;
  call[6] = (unsigned)(unsigned long long)f;
  for (int i = 0; i < NUM_PARAMS; i++) call[8 + i] = *(unsigned *)params[i];
  return 0;
}
CUresult cuCtxGetCurrent(CUcontext *c) { *c = (CUcontext)8; return 0; }
CUresult cuPointerGetAttribute(void *data, CUpointer_attribute a, CUdeviceptr p) {
  *(CUdeviceptr *)data = p; return 0;
}
"""
UNUSED = (
    "cuCtxGetDevice", "cuCtxGetLimit", "cuCtxSetCurrent", "cuCtxSetLimit", "cuDeviceGet",
    "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuDriverGetVersion", "cuFuncGetAttribute",
    "cuFuncSetAttribute", "cuFuncSetCacheConfig", "cuGetErrorString", "cuModuleGetFunction",
    "cuModuleUnload", "cuModuleLoadData", "cuStreamIsCapturing",
)  # fmt: skip


def built(folder: Path) -> ctypes.CDLL:
    """In front of any driver, for it is loaded by its name first."""
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    unused = "".join(f"\n#undef {name}\nint {name}_() __asm__(\"{name}\");"
                     f"\nint {name}_() {{ return 0; }}" for name in UNUSED)  # fmt: skip
    (folder / "driver.c").write_text(SOURCE + unused + "\n")
    library = folder / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", f"-DMOST_CALLS={MOST_CALLS}", f"-DNUM_PARAMS={NUM_PARAMS}",
         "-Wl,-soname,libcuda.so.1", "-I", str(include),
         str(folder / "driver.c"), "-o", str(library)],
        check=True, timeout=60,
    )  # fmt: skip
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def launch_thrice(gpu: NoGpu) -> None:
    """The last two are the same, but that the second was looked up and the third is Triton's."""
    from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

    utils = CudaUtils()
    vars(utils).update(vars(gpu.utils))
    vars(gpu).update(utils=utils, launcher_cls=CudaLauncher)
    x_TK, rms = torch.zeros(5, 64), Norm(weight_K=torch.ones(64), eps=1e-6)
    norm.normed(x_TK[:3], None, rms, dtype=torch.bfloat16)
    norm.normed(x_TK, None, rms, dtype=torch.bfloat16)
    norm.bound_norm.cache_clear()
    norm.normed(x_TK, None, rms, dtype=torch.bfloat16)


def main() -> None:
    library = built(Path(sys.argv[1]))
    with faked() as gpu:
        launch_thrice(gpu)
    rows = ((ctypes.c_uint * (8 + NUM_PARAMS)) * MOST_CALLS).in_dll(library, "calls")
    count = ctypes.c_uint.in_dll(library, "count").value
    print(json.dumps([list(rows[number]) for number in range(count)]))


if __name__ == "__main__":
    main()
