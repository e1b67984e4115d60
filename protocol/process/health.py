"""How a worker process is, for whoever supervises it from outside: Kubernetes, mostly.

The HTTP server of the metrics answers `/ready` and `/health` from another thread, and asks no name
server.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from protocol.messages import WorkerState
from protocol.process.listening import bound_socket

STUCK_S = 60.0
"""Without a beat for this long the event loop hangs: a beat comes twice a second."""

ENGINE_STUCK_S = 300.0
"""At one step for this long the engine's thread hangs: a large model on a few CPU cores may take a
minute for a chunk, and a GPU's step is given up after one."""

LOADING_STUCK_S = 300.0
"""Loading that neither says that it goes on, nor reads, nor computes for this long hangs: a volume
that does not answer, or a driver."""

LOADING_SPINS_S = 1800.0
"""As LOADING_STUCK_S, of a process that computes all the while: compiling, or in a loop."""

READS_BYTES = 1 << 20
"""Read or written since the last look: a start that goes on. Answering probes takes less."""

COMPUTES = 0.1
"""Of a core: what answers probes and writes to Redis takes less."""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Activity:
    """What a process has done since its start."""

    num_bytes: int = 0
    """Read and written, mapped files included."""
    cpu_s: float = 0.0
    """Of children that have ended, too."""


def own_activity() -> Activity:
    """Of this process."""
    times, num_bytes = os.times(), 0
    with suppress(OSError, ValueError):  # not everywhere may a process see it
        for line in Path("/proc/self/io").read_text().splitlines():
            name, _, number = line.partition(":")
            num_bytes += int(number) if name in ("rchar", "wchar", "read_bytes") else 0
    return Activity(num_bytes, sum(times[:4]))


class Health:
    """Loading until the first `note`. Thread-safe."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        activity: Callable[[], Activity] = own_activity,
    ) -> None:
        self._clock = clock
        self._activity = activity
        self._loading: tuple[str, float, Activity] | None = None
        """At what, since when it has not gone on, and what had been done by then."""
        self._no_kv: str | None = None
        self._last: tuple[WorkerState, float, float] | None = None
        self.store_wait: Callable[[], str | None] = lambda: None
        """What it waits for of Redis, without which no router finds it."""
        self._waits_for: str | None = None

    def note(self, state: WorkerState, *, turn_s: float = 0.0) -> None:
        """With every beat, and at once when the state changes; `turn_s` as
        `engine.loop.Engine.turn_s`."""
        self._last = (state, self._clock(), turn_s)

    def note_no_kv(self, why: str | None) -> None:
        """Why no KV has come from anybody since the start; None: it has, or there is nobody."""
        self._no_kv = why

    def note_progress(self, doing: str) -> None:
        """Loading goes on. Before the first of these nothing is expected to."""
        self._loading = (doing, self._clock(), self._activity())

    def note_waiting(self, why: str | None) -> None:
        """What it waits for before it is ready, besides what its state says: Redis at the start,
        routers that have not met it. None: for nothing."""
        self._waits_for = why

    def not_alive(self) -> str | None:
        """Why the process should be started again; None when it need not. Loading is living, as
        long as it goes on."""
        if self._last is None:
            return self._not_loading()
        silent_s, turn_s = self._clock() - self._last[1], self._last[2]
        if silent_s > STUCK_S:
            return f"no beat for {silent_s:.0f} s"
        return f"at one step for {turn_s:.0f} s" if turn_s > ENGINE_STUCK_S else None

    def _not_loading(self) -> str | None:
        if self._loading is None:
            return None
        (doing, since_s, before), now_s, done = self._loading, self._clock(), self._activity()
        if done.num_bytes - before.num_bytes >= READS_BYTES:
            self._loading = (doing, now_s, done)
            return None
        silent_s = now_s - since_s
        computes = done.cpu_s - before.cpu_s >= COMPUTES * silent_s
        if silent_s <= (LOADING_SPINS_S if computes else LOADING_STUCK_S):
            return None
        return f"loading has not gone on for {silent_s:.0f} s, at {doing}"

    def not_ready(self) -> str | None:
        """Why it takes no requests; None when it does."""
        if self._last is None:
            return self.store_wait() or self._waits_for or "loading"
        if self._last[0] == "draining":
            return "draining"
        return self.not_alive() or self.store_wait() or self._waits_for or self._no_kv


def with_health(app: App, health: Health) -> App:
    """The WSGI `app`, with `/ready` and `/health` answered by `health`: 200, or 503 and why."""
    answers = {"/ready": health.not_ready, "/health": health.not_alive}

    def serve(request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        answer = answers.get(request["PATH_INFO"])
        if answer is None:
            return app(request, start)
        why = answer()
        status = "200 OK" if why is None else "503 Service Unavailable"
        start(status, [("Content-Type", "text/plain")])
        return [f"{why or 'ok'}\n".encode()]

    return serve


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 32

    def server_bind(self) -> None:
        """Not that of the library, which asks a name server for ours, for ten seconds at worst."""
        host, port = str(self.server_address[0]), int(self.server_address[1])
        self.socket.close()
        self.socket = bound_socket(host, port, setting="metrics_port")
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = host, int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = 10
    """Seconds for a request: of one that never comes nobody waits longer."""

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come twice a second."""


def serve_metrics(registry: CollectorRegistry, health: Health, *, host: str, port: int) -> int:
    """Until the process ends; the port. Raises SettingsError when it cannot be had."""
    server = _Server((host, port), _Handler)
    server.set_app(with_health(make_wsgi_app(registry), health))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server.server_port
