"""The aliases file, changed under a router that serves."""

import asyncio
import json
import logging
from pathlib import Path

import pytest

from protocol.errors import SettingsError
from protocol.process.metrics import RouterMetrics
from router.models.alias_file import ALIASES_FILE, read_aliases, watch_aliases
from router.models.snapshot import Aliases


class Watched:
    def __init__(self, path: Path) -> None:
        self.metrics = RouterMetrics()
        self.aliases: Aliases = {}
        self._watch = watch_aliases(path, self._use, self.metrics)

    def _use(self, aliases: Aliases) -> None:
        self.aliases = aliases

    def look(self) -> None:
        asyncio.run(self._watch.look())

    def count(self, outcome: str) -> float | None:
        name = "baton_router_alias_reloads_total"
        return self.metrics.registry.get_sample_value(name, {"outcome": outcome})


def test_a_changed_file_counts_when_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "aliases.json"
    path.write_text(json.dumps({"prod": {"a": 95, "b": 5}}))
    watched = Watched(path)
    assert watched.aliases == {"prod": {"a": 95, "b": 5}}
    path.write_text(json.dumps({"prod": {"b": 100}}))
    watched.look()
    assert watched.aliases == {"prod": {"b": 100}}
    watched.look()
    assert watched.count("loaded") == 1


@pytest.mark.parametrize("broken", ["{", '{"prod": {}}', None])
def test_a_broken_file_changes_nothing_and_says_so_once(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "aliases.json"
    path.write_text('{"prod": {"a": 1}}')
    watched = Watched(path)
    path.unlink()
    if broken is not None:
        path.write_text(broken)
    with caplog.at_level(logging.WARNING, "baton.aliases"):
        watched.look()
        watched.look()
    assert watched.aliases == {"prod": {"a": 1}} and watched.count("refused") == 1
    (record,) = caplog.records
    assert str(path) in record.__dict__["why"] and record.__dict__["remedy"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "Expected `object`"),
        ('{"": {"a": 1}}', "length >= 1"),
        ('{"prod": "a"}', r"Expected `object`, got `str` - at `\$\[\.\.\.\]`"),
        ('{"prod": {"a": -1}}', ">= 0"),
        ('{"prod": {"a": "1"}}', "Expected `float`"),
        ('{"prod": {"a": 0}}', "'prod': needs a model with a weight above 0"),
        ('{"prod": {"next": 1}, "next": {"a": 1}}', "'prod': 'next' is an alias"),
    ],
)
def test_what_is_wrong_is_told(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_aliases(text.encode())


def test_an_alias_may_stand_for_a_model_of_its_own_name() -> None:
    assert read_aliases(b'{"a": {"a": 9, "b": 1}}') == {"a": {"a": 9.0, "b": 1.0}}


def test_a_router_does_not_start_with_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="aliases_file"):
        ALIASES_FILE.load(tmp_path / "nowhere.json")
