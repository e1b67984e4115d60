"""`baton status`: the workers of a running cluster, as the router sees them.

A picture of one moment; `/metrics` has the history.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from controlplane.cli.http import HttpSettings, get_json
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
        sys.stdout.write(json.dumps(cluster, indent=2) + "\n")
        return
    _print_table(settings, cluster)


def _print_table(settings: HttpSettings, cluster: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("worker", "state", "pid", "kv by", "run", "wait"):
        table.add_column(name, no_wrap=True)
    for name in ("blocks", "free", "cached", "leased", "prefill/s", "step"):
        table.add_column(name, no_wrap=True, justify="right")
    for worker in cluster["workers"]:
        table.add_row(*_row(worker))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no edge to wrap at
    console.print(table)
    for worker in cluster["workers"]:
        if worker["why"]:
            console.print(f"{worker['id']}: {worker['why']}", markup=False)
        for line in _fallbacks(worker):
            console.print(line, markup=False)
    facts = {key: value for key, value in cluster.items() if isinstance(value, str)}
    console.print("  ".join(f"{key}: {value}" for key, value in facts.items()), markup=False)


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
