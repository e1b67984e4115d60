"""The kernels compiled for the GPUs we name, by Triton and its own ptxas, without one."""

import re
from pathlib import Path

import pytest
from support.ahead import Call, assert_fits

from kvtransfer.kernels.copy import NUM_WARPS, TILE_WORDS, copy_kernel

_SIGNATURE = {
    "target": "i64", "source": "i64", "table": "*i64", "sums": "*i64", "num_ranges": "i32",
}  # fmt: skip
KERNELS = {"copy": True, "sums": False}
"""Whether it copies, besides summing."""


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def call(name: str) -> Call:
    return Call(
        kernel=copy_kernel,
        signature={**_SIGNATURE, "COPIES": "constexpr", "TILE": "constexpr"},
        constants={"COPIES": KERNELS[name], "TILE": TILE_WORDS},
        aligned=frozenset(_SIGNATURE) - {"num_ranges"},
        options={"num_warps": NUM_WARPS, "enable_fp_fusion": False},
    )


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_kernel_fits_its_gpu(name: str, arch: int, tmp_path: Path) -> None:
    assert_fits(call(name), arch, tmp_path)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_words_are_loaded_sixteen_bytes_at_a_time(name: str) -> None:
    ptx = call(name).compiled(90).asm["ptx"]
    assert len(re.findall(r"ld\.global\.v2\.b64", ptx)) == 4, "8 words a thread"
