"""The facts that predictions start from are those of the kernels as they compile now."""

from pathlib import Path

import pytest
from support.kernel_facts import kernel_facts

from tools.predict.__main__ import read_kernels


@pytest.mark.slow
@pytest.mark.long
def test_the_facts_of_the_kernels_are_those_of_fresh_compilations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else: PYTHONPATH=.:tests python -m support.kernel_facts > tools/predict/kernels.json"""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    assert kernel_facts(tmp_path) == read_kernels()
