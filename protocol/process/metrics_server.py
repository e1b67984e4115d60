"""`/metrics`, `/ready` and `/health` of a worker, from a thread of its own.

No name is looked up: probes are answered while no name server is.
"""

import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from protocol.process.health import Health, with_health
from protocol.process.listening import bound_socket


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
