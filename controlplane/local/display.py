"""What `baton up` shows: progress while weights load, then where to send requests.

A live table on a terminal, plain lines otherwise. Progress and warnings go to stderr, the address
to stdout.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from typing import assert_never

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from controlplane.local.child import ChildDied, ChildEvent, ChildHung, ChildStarted
from controlplane.local.log_line import LogLine

LIFE_CYCLE_EVENTS = frozenset({"ready", "draining", "drained", "stopped"})
UNSAID = frozenset({"time", "level", "event", "process"})
CHATTY = frozenset({"redis"})
"""Children whose plain lines are routine; what they die of is still shown."""


@dataclass(slots=True)
class Row:
    """One child, as shown."""

    state: str = "starting"
    done: float = 0.0
    """Of the weights, 0 to 1."""
    pid: int = 0


class Stderr(Console):
    def on_broken_pipe(self) -> None:
        """Not rich's way, which is to exit with 1."""
        raise BrokenPipeError


@dataclass(slots=True)
class Display:
    """Fed with the children's events in order; knows nothing else."""

    verbose: bool = False
    err: Console = field(default_factory=lambda: Stderr(stderr=True, highlight=False))
    rows: dict[str, Row] = field(default_factory=dict)
    starting: bool = True
    stopping: bool = False
    _began: float = field(default_factory=time.monotonic)
    _live: Live | None = None

    def begin(self, headline: str) -> None:
        self.say(headline)
        if self.err.is_terminal and not self.verbose:
            self._live = Live(console=self.err, get_renderable=self._table, transient=True)
            self._live.start()

    def on_event(self, event: ChildEvent) -> None:
        match event:
            case ChildStarted():
                self.rows[event.child] = Row(pid=event.pid)
                if event.restarts:
                    self.say(f"{event.child}: started again, pid {event.pid}")
                elif self._live is None:
                    self.say(f"{event.child}: started, pid {event.pid}")
            case ChildDied():
                self.rows[event.child].state = "died"
                self.say(
                    f"{event.child}: died ({_ending(event.exit_code)}); "
                    f"starting it again in {event.delay_s:.1f} s"
                )
            case ChildHung():
                self.say(f"{event.child}: has not answered for {event.silent_s:.0f} s; killing it")
            case LogLine():
                self._on_line(event)
            case _:
                assert_never(event)

    def ready(self, *, url: str, model: str) -> None:
        """The one line that says where, and a request to try."""
        self.settle()
        elapsed_s = time.monotonic() - self._began
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
        sys.stdout.write(f"Baton serves {model} at {url} (ready in {elapsed_s:.1f} s)\n")
        sys.stdout.write(
            f"Try: curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n"
        )
        sys.stdout.flush()

    def settle(self) -> None:
        """The start is over."""
        self.close()
        self.starting = False

    def stop(self, text: str) -> None:
        self.close()
        self.stopping = True
        self.say(text)

    def close(self) -> None:
        """No more progress is shown."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        self.err.print(text, markup=False, soft_wrap=True)

    def _on_line(self, line: LogLine) -> None:
        row = self.rows[line.child]
        if line.event == "loading":
            self._on_loading(line, row)
        elif line.event in LIFE_CYCLE_EVENTS and not line.is_plain:
            row.state = line.event
            if self._live is None and (self.starting or self.stopping):
                self.say(f"{line.child}: {line.event}")
            return
        if self.verbose or (line.is_plain and line.child not in CHATTY):
            self.say(f"{line.child}: {line.text.removeprefix(f'{line.child}: ')}")
        elif line.is_warning and not self.stopping:  # then, that links are lost is no news
            self.say(f"{line.child}: {_sentence(line)}")

    def _on_loading(self, line: LogLine, row: Row) -> None:
        done, total = line.fields.get("done"), line.fields.get("total")
        if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
            return
        before, row.done, row.state = row.done, done / total, "loading"
        quarter = int(4 * row.done) > int(4 * before)
        if self._live is None and self.starting and quarter:
            self.say(f"{line.child}: weights {row.done:.0%}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, row in self.rows.items():
            filled = round(20 * row.done)
            bar = f"[green]{'━' * filled}[/green][dim]{'━' * (20 - filled)}[/dim]"
            shown = bar if row.state == "loading" else ""
            table.add_row(escape(name), row.state, shown, f"[dim]pid {row.pid}[/dim]")
        return table


def _sentence(line: LogLine) -> str:
    """A log event as one would say it: its name, then what it says of itself."""
    facts = {name: value for name, value in line.fields.items() if name not in UNSAID}
    return ", ".join([line.event, *(f"{name} {value}" for name, value in facts.items())])


def _ending(exit_code: int) -> str:
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
