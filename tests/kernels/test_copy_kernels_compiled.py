"""The kernels compiled for the GPUs we name, by Triton and its own ptxas, without one."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.ahead import Call, assert_fits

from kvtransfer.kernels import copy, sums

_COPY = {"target": "i64", "source": "i64", "table": "*i64", "sums": "*i64", "num_ranges": "i32"}
_SUMS = {name: kind for name, kind in _COPY.items() if name != "target"}
KERNELS: dict[str, tuple[Any, dict[str, str], int, int]] = {
    "copy": (copy.copy_kernel, _COPY, copy.TILE_WORDS, copy.NUM_WARPS),
    "sums": (sums.sums_kernel, _SUMS, sums.TILE_WORDS, sums.NUM_WARPS),
}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def call(name: str) -> Call:
    kernel, signature, tile, num_warps = KERNELS[name]
    return Call(
        kernel=kernel,
        signature={**signature, "TILE": "constexpr"},
        constants={"TILE": tile},
        aligned=frozenset(signature) - {"num_ranges"},
        options={"num_warps": num_warps, "enable_fp_fusion": False},
    )


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_kernel_fits_its_gpu(name: str, arch: int, tmp_path: Path) -> None:
    assert_fits(call(name), arch, tmp_path)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_words_are_loaded_sixteen_bytes_at_a_time(name: str) -> None:
    ptx = call(name).compiled(90).asm["ptx"]
    assert len(re.findall(r"ld\.global\.v2\.b64", ptx)) == 4, "8 words a thread"
