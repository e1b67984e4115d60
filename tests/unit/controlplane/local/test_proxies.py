"""What the supervisor asks of its own router passes no proxy of the environment."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from controlplane.local.cluster import RunningCluster
from controlplane.local.settings import UpFlags, UpSettings


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"workers": [{"id": "decode-0", "state": "ready"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "foo://bar"])
def test_a_cluster_is_found_ready_whatever_proxies_are_set(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    with HTTPServer(("127.0.0.1", 0), _Ready) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        flags = UpFlags(settings=UpSettings(prefill=0), child_env={})

        async def ready() -> bool:
            async with asyncio.timeout(20):
                local = RunningCluster(flags, port=server.server_port)
                return await local.wait_ready(unless=asyncio.Event())

        try:
            assert asyncio.run(ready())
        finally:
            server.shutdown()
            thread.join()
