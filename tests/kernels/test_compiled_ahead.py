"""The kernels compiled for the GPUs we name, by Triton and its own ptxas, without one."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvtransfer.kernels import copy, sums

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Most a block may have on sm_80, sm_90 and sm_100."""
_COPY = {"target": "i64", "source": "i64", "table": "*i64", "sums": "*i64", "num_ranges": "i32"}
_SUMS = {name: kind for name, kind in _COPY.items() if name != "target"}
KERNELS: dict[str, tuple[Any, dict[str, str], int, int]] = {
    "copy": (copy.copy_kernel, _COPY, copy.TILE_WORDS, copy.NUM_WARPS),
    "sums": (sums.sums_kernel, _SUMS, sums.TILE_WORDS, sums.NUM_WARPS),
}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(name: str, arch: int) -> Any:
    kernel, signature, tile, num_warps = KERNELS[name]
    aligned = ("target", "source", "table", "sums")
    source = ASTSource(
        fn=kernel,
        signature={**signature, "TILE": "constexpr"},
        constexprs={"TILE": tile},
        attrs={
            (i,): [["tt.divisibility", 16]] for i, arg in enumerate(signature) if arg in aligned
        },
    )
    options = {"num_warps": num_warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """What a block of the one kernel in it takes."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [str(_TOOLS / "cuobjdump"), "-res-usage", str(path)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return {
        name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", output)
    }


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_kernel_fits_its_gpu(name: str, arch: int, tmp_path: Path) -> None:
    kernel = compiled(name, arch)
    taken = resources(kernel.asm["cubin"], tmp_path)
    assert 0 < taken["REG"] <= 255
    assert taken["STACK"] == taken["LOCAL"] == 0, "spills"
    assert taken["SHARED"] + kernel.metadata.shared <= _SHARED_BYTES[arch]


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_words_are_loaded_sixteen_bytes_at_a_time(name: str) -> None:
    ptx = compiled(name, 90).asm["ptx"]
    assert len(re.findall(r"ld\.global\.v2\.b64", ptx)) == 4, "8 words a thread"
