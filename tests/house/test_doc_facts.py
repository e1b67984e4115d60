"""What the pages say of metrics, flags, exit codes and limits is what the code has."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Counter
from pydantic_settings import BaseSettings
from support.source_tree import ROOT

from controlplane.cli import main as cli
from controlplane.cli.conversation import ChatSettings
from controlplane.cli.status import StatusSettings
from controlplane.doctor.doctor import DoctorSettings
from controlplane.fetch.settings import FetchSettings
from controlplane.local.settings import UpSettings
from controlplane.local.workers_settings import NodeSettings
from decode_worker.settings import DecodeSettings
from engine.limits import CPU
from prefill_worker.settings import PrefillSettings
from protocol.process.backoff import Backoff
from protocol.process.health import ENGINE_STUCK_S, LOADING_SPINS_S, LOADING_STUCK_S, STUCK_S
from protocol.process.metrics import MetricRow, RouterMetrics, TransferMetrics, WorkerMetrics
from protocol.process.run import EXIT_FAILED
from protocol.process.settings import EXIT_BAD_CHECKPOINT, EXIT_BAD_SETTINGS
from router.settings import RouterSettings

PAGES = (
    "README.md",
    "docs/admission.md",
    "docs/api.md",
    "docs/operations.md",
    "docs/routing.md",
    "docs/transfer.md",
    "docs/engine.md",
)
SETTINGS: tuple[type[BaseSettings], ...] = (
    *(UpSettings, RouterSettings, PrefillSettings, DecodeSettings),
    *(ChatSettings, StatusSettings, DoctorSettings, FetchSettings, NodeSettings),
)
OTHER_FLAGS = frozenset({"help", "version"})
METRIC = re.compile(r"`(baton_[a-z_]+)(?:\{([a-z_,]+)\})?`")
OF_OTHERS = re.compile(r"^(?:helm|kubectl|docker) .*$", re.M)
"""Commands whose flags are not ours."""
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]+[a-z]\d*)")
UP, DECODE = UpSettings.model_fields, DecodeSettings.model_fields
SAID = {
    "docs/operations.md": (
        f"({Backoff().first_s:g} s doubling to {Backoff().limit_s:g} s)",
        f"has answered no probe for {UP['hung_s'].default:g} s (`--hung-s`",
        f"| {cli.EXIT_FAILED} | something it needs is not there",
        f"| {cli.EXIT_BAD_SETTINGS} | a setting is wrong",
        f"| {cli.EXIT_BAD_CHECKPOINT} | the checkpoint cannot be read",
        f"| {cli.EXIT_INTERRUPTED}, {cli.EXIT_PIPE_CLOSED} | Ctrl-C; whoever read",
        f"`--kv-memory-share` ({DECODE['kv_memory_share'].default:g})",
        f"`--max-running` and `--token-budget` are {CPU.max_running} and {CPU.token_budget} on a "
        "CPU",
        f"({DECODE['block_tokens'].default} tokens by default)",
        f"503 when its event loop has said nothing for {STUCK_S:g} s, its engine has been at one "
        f"step for {ENGINE_STUCK_S:g} s, or its loading has neither said that it goes on nor read "
        f"or computed anything for {LOADING_STUCK_S:g} s ({LOADING_SPINS_S:g} s of one that only "
        "computes)",
    ),
}
"""Page -> what it must say, made of the code's own numbers."""


def test_every_metric_that_a_page_names_exists_with_these_labels() -> None:
    labels = _metrics()
    wrong = [
        f"{page}: {name}{{{named}}}"
        for page in PAGES
        for name, named in METRIC.findall((ROOT / page).read_text())
        if name not in labels or (named and set(named.split(",")) != labels[name])
    ]
    assert not wrong, "\n".join(wrong)


def test_every_flag_that_a_page_names_exists() -> None:
    known = {name for settings in SETTINGS for name in _flags(settings)} | OTHER_FLAGS
    unknown = [
        f"{page}: --{flag}"
        for page in PAGES
        for flag in _commands(ROOT / page)
        if flag not in known
    ]
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize(
    ("page", "sentence"), [(page, said) for page in SAID for said in SAID[page]]
)
def test_a_page_says_the_numbers_of_the_code(page: str, sentence: str) -> None:
    assert sentence in " ".join((ROOT / page).read_text().split())


def test_the_command_and_the_processes_agree_on_exit_codes() -> None:
    ours = (cli.EXIT_FAILED, cli.EXIT_BAD_SETTINGS, cli.EXIT_BAD_CHECKPOINT)
    assert ours == (EXIT_FAILED, EXIT_BAD_SETTINGS, EXIT_BAD_CHECKPOINT)


def _metrics() -> dict[str, set[str]]:
    """Every metric by the name it is scraped under, and its labels."""
    found: dict[str, set[str]] = {}
    for table in (RouterMetrics, WorkerMetrics, TransferMetrics):
        for row in vars(table).values():
            if isinstance(row, MetricRow):
                name, _, labels = row.made_in.args
                found[name + ("_total" if row.made_in.func is Counter else "")] = set(labels)
    return found


def _flags(settings: type[BaseSettings]) -> Iterator[str]:
    for name, field in settings.model_fields.items():
        yield (field.alias or name).replace("_", "-")
        if field.annotation is bool:
            yield f"no-{name.replace('_', '-')}"


def _commands(page: Path) -> list[str]:
    return FLAG.findall(OF_OTHERS.sub("", page.read_text()))
