"""`baton status`: the workers of a running cluster, as the router sees them.

A picture of one moment; `/metrics` has the history.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from controlplane.cli.http import UNLIKE_BATON, HttpSettings, get_json, unlike_baton
from controlplane.cli.terminal import visible, write
from protocol.process.settings import load


class StatusSettings(HttpSettings):
    """Flags of `baton status`."""

    as_json: bool = Field(default=False, alias="json")
    """Print what /cluster answers, as it is."""


def status(argv: Sequence[str]) -> None:
    """Raises SettingsError or RouterUnreachable."""
    settings = load(StatusSettings, argv, prog="baton status")
    cluster = get_json(settings, "/cluster")
    if settings.as_json:
        write(json.dumps(cluster, indent=2) + "\n")
        return
    try:
        rows, notes = [_row(worker) for worker in cluster["workers"]], _notes(cluster)
    except UNLIKE_BATON as error:
        raise unlike_baton(settings, cluster) from error
    _print_table(rows, notes)


def _print_table(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("worker", "state", "pid", "kv by", "run", "wait"):
        table.add_column(name, no_wrap=True)
    for name in ("blocks", "free", "cached", "leased", "prefill/s", "step"):
        table.add_column(name, no_wrap=True, justify="right")
    for row in rows:
        table.add_row(*(escape(visible(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no edge to wrap at
    with console.capture() as capture:  # its own writing ends the process when nobody reads
        console.print(table)
        for note in notes:
            console.print(visible(note), markup=False)
    sys.stdout.write(capture.get())


def _notes(cluster: dict[str, Any]) -> list[str]:
    """What the table has no column for."""
    notes, versions = [], {_served(worker) for worker in cluster["workers"]}
    for worker in cluster["workers"]:
        notes += [f"{worker['id']}: serves {_served(worker)}"] if len(versions) > 1 else []
        notes += [f"{worker['id']}: {worker['why']}"] if worker["why"] else []
        notes += _fallbacks(worker)
    facts = {key: value for key, value in cluster.items() if isinstance(value, str)}
    return [*notes, "  ".join(f"{key}: {value}" for key, value in facts.items())]


def _served(worker: dict[str, Any]) -> str:
    version = worker["version"]
    return f"{version['model']}@{version['revision']}"


def _fallbacks(worker: dict[str, Any]) -> list[str]:
    """Where KV goes a slower way than configured, and why."""
    return [
        f"{worker['id']}: KV from {use['peer']} by {use['name']}: {use['why']}"
        for use in worker["transports"]
        if "not " in use["why"]
    ]


def _row(worker: dict[str, Any]) -> list[str]:
    blocks, speeds = worker["blocks"], worker["speeds"]
    step_ms = 1000 * speeds["decode_step_s"]
    return [
        *(str(worker[key]) for key in ("id", "state", "pid", "transport", "running", "waiting")),
        *(str(blocks[key]) for key in ("total", "free", "cached", "leased")),
        f"{speeds['prefill_tokens_per_s']:,.0f}" if speeds["prefill_tokens_per_s"] else "-",
        f"{step_ms:.1f} ms" if step_ms else "-",
    ]
