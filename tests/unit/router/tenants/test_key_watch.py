"""The keys file on disk, changed under a router that serves."""

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest

from protocol.errors import SettingsError
from protocol.process.metrics import RouterMetrics
from router.tenants.key_ring import KeyRing
from router.tenants.key_watch import watch_keys


def text_of(key: str, tenant: str = "a") -> str:
    return json.dumps({"keys": [{"key": key, "tenant": tenant}]})


class Watched:
    def __init__(self, path: Path) -> None:
        self.ring, self.metrics = KeyRing(), RouterMetrics()
        self._watch = watch_keys(path, self.ring, self.metrics)

    def look(self) -> None:
        asyncio.run(self._watch.look())

    def opens(self, key: str) -> bool:
        return self.ring.find_key(key.encode(), now=0.0) is not None

    def count(self, outcome: str) -> float | None:
        name = "baton_router_key_reloads_total"
        return self.metrics.registry.get_sample_value(name, {"outcome": outcome})


def test_a_changed_file_counts_when_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text_of("old"))
    watched = Watched(path)
    assert watched.opens("old")
    path.write_text(text_of("newer"))
    watched.look()
    assert watched.opens("newer") and not watched.opens("old")
    watched.look()
    assert watched.count("loaded") == 1


def test_a_secret_whose_link_is_moved_to_another_version_is_read(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.json").write_text(text_of(f"of-{version}"))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    watched = Watched(tmp_path / "keys.json")
    (tmp_path / "..new").symlink_to("2")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    watched.look()
    assert watched.opens("of-2") and not watched.opens("of-1")


@pytest.mark.parametrize("broken", ["{", '{"keys": [{"tenant": "a"}]}', None])
def test_a_broken_file_changes_nothing_and_says_so_once(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text_of("old"))
    watched = Watched(path)
    path.unlink()
    if broken is not None:
        path.write_text(broken)
    with caplog.at_level(logging.WARNING, "baton.keys"):
        watched.look()
        watched.look()
    assert watched.opens("old") and watched.count("refused") == 1
    (record,) = caplog.records
    assert str(path) in record.__dict__["why"] and record.__dict__["remedy"]
    path.write_text(text_of("new"))
    watched.look()
    assert watched.opens("new")


@pytest.mark.parametrize("broken", ["{", None])
def test_a_router_does_not_start_with_a_file_that_is_wrong(
    tmp_path: Path, broken: str | None
) -> None:
    path = tmp_path / "keys.json"
    if broken is not None:
        path.write_text(broken)
    with pytest.raises(SettingsError, match="keys_file: "):
        Watched(path)
