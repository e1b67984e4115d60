"""Sorts tests into tiers and holds the quick ones to theirs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.purity import pure
from support.tiers import OTHER_TIERS, is_quick_file, turn_of

TESTS = Path(__file__).parent

# How long an example takes says how busy the machine is.
settings.register_profile(
    "untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m quick` imports no file of another tier: that would take as long as the tests."""
    is_alone = config.getoption("markexpr") == "quick" and collection_path.suffix == ".py"
    return True if is_alone and not is_quick_file(collection_path.relative_to(TESTS)) else None


def pytest_itemcollected(item: pytest.Item) -> None:
    marks, path = {mark.name for mark in item.iter_markers()}, item.path.relative_to(TESTS)
    if is_quick_file(path) and not marks & OTHER_TIERS:
        item.add_marker("quick")
    if item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group(turn_of(path)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from _guarded(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from _guarded(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield from _guarded(item)


def _guarded(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker("quick") is None:
        yield
        return
    with pure():
        yield
