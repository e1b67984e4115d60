"""How a worker process is, for whoever supervises it from outside: Kubernetes, mostly.

The HTTP server of the metrics answers `/ready` and `/health` from another thread, and asks no name
server.
"""

import threading
import time
from collections.abc import Callable, Iterable
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

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Health:
    """Loading until the first `note`. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[WorkerState, float, float] | None = None
        self.store_wait: Callable[[], str | None] = lambda: None
        """What it waits for of Redis, without which no router finds it."""
        self._waits_for: str | None = None

    def note(self, state: WorkerState, *, turn_s: float = 0.0) -> None:
        """With every beat, and at once when the state changes; `turn_s` as
        `engine.loop.Engine.turn_s`."""
        self._last = (state, self._clock(), turn_s)

    def note_waiting(self, why: str | None) -> None:
        """What it waits for before it is ready, besides what its state says: Redis at the start,
        routers that have not met it. None: for nothing."""
        self._waits_for = why

    def not_alive(self) -> str | None:
        """Why the process should be started again; None when it need not. Loading is living."""
        if self._last is None:
            return None
        silent_s, turn_s = self._clock() - self._last[1], self._last[2]
        if silent_s > STUCK_S:
            return f"no beat for {silent_s:.0f} s"
        return f"at one step for {turn_s:.0f} s" if turn_s > ENGINE_STUCK_S else None

    def not_ready(self) -> str | None:
        """Why it takes no requests; None when it does."""
        if self._last is None:
            return self.store_wait() or self._waits_for or "loading"
        if self._last[0] == "draining":
            return "draining"
        return self.not_alive() or self.store_wait() or self._waits_for


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
