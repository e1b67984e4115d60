"""The quick tier is what its page says: every test of a folder but those listed."""

from pathlib import PurePath

import pytest
from support.source_tree import ROOT
from support.tiers import NOT_PURE, NOT_SOON, is_quick_file

TESTS = ROOT / "tests"


@pytest.mark.parametrize("pattern", NOT_PURE + NOT_SOON)
def test_what_is_listed_exists(pattern: str) -> None:
    assert any(TESTS.glob(pattern))


def test_a_file_is_quick_by_its_folder_unless_it_is_listed() -> None:
    assert is_quick_file(PurePath("unit/router/requests/test_states.py"))
    assert is_quick_file(PurePath("house/test_tiers.py"))
    assert not is_quick_file(PurePath("unit/protocol/store/test_workers.py"))
    assert not is_quick_file(PurePath("system/test_up.py"))
    assert not is_quick_file(PurePath("contract/test_transport.py"))
