"""A change of a release under load: the one that every run of the tests makes."""

import asyncio
from pathlib import Path

import pytest
from support.pods.changes import another_tokenizer_under_one_name
from support.pods.network import can_have_pods

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not can_have_pods(), reason="needs root and network namespaces"),
    pytest.mark.timeout(590),
]


def test_a_model_with_another_tokenizer_replaces_one_under_its_name(tmp_path: Path) -> None:
    """Not one answer is of one model's tokens and the other's text."""
    asyncio.run(another_tokenizer_under_one_name(tmp_path, replicas=1, lag_s=0.5))
