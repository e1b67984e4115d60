"""Logs as JSON events and every metric's name.

A log line is `{"time", "level", "event", "process", "request", ...fields}`: the event is the
message of the call, the fields its `extra`, the request that of the context the call runs in.
"""

import re
import threading

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from protocol.errors import SettingsError
from protocol.process.health import Health, with_health

# -- metrics: every name is in this file ----------------------------------------------------

_SHORT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Reasons:
    """Texts as values of a label: without their numbers, and never more than MAX_REASONS of them,
    so that no peer can make a metric grow. Thread-safe."""

    MAX_REASONS = 32
    _MAX_CHARS = 120
    _NUMBER = re.compile(r"\d[\d.:]*")

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def label(self, text: str) -> str:
        """The text without what only this one case has; "other" when there are too many."""
        plain = self._NUMBER.sub("#", text)[: self._MAX_CHARS]
        with self._lock:
            if plain in self._known:
                return plain
            if len(self._known) >= self.MAX_REASONS:
                return "other"
            self._known.add(plain)
        return plain


class TransferMetrics:
    """How KV moves, as the worker that fetches it or lends it sees it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.reasons = Reasons()
        self.transports = Counter(
            "baton_kv_transport",
            "Links to sources, by event: chosen (a transport is in use), fallback (it is, instead"
            " of an earlier one of the settings, and why), refused (none may be used, and why).",
            ["event", "transport", "instead_of", "reason"],
            registry=r,
        )
        self.fetches = Counter(
            "baton_worker_fetches",
            "KV fetches ended, by transport and ending: landed, lost or aborted.",
            ["transport", "ending"],
            registry=r,
        )
        self.moved_bytes = Counter(
            "baton_worker_kv_moved_bytes", "Bytes of KV fetched.", ["transport"], registry=r
        )
        self.lent_bytes = Counter(
            "baton_worker_kv_lent_bytes",
            "Bytes of KV offered to fetchers, counting those offered again.",
            ["transport"],
            registry=r,
        )
        self._histograms(r)
        self.retries = Counter(
            "baton_worker_fetch_retries",
            "Times that a fetch asked again for what it lacked.",
            registry=r,
        )
        self.rejected_blocks = Counter(
            "baton_worker_kv_rejected_blocks",
            "KV blocks that arrived and were not used, by why.",
            ["reason"],
            registry=r,
        )
        self.kept_blocks = Counter(
            "baton_worker_kv_kept_blocks",
            "KV blocks that had arrived when their fetch was lost, and need not be fetched again.",
            registry=r,
        )
        self._gauges(r)

    def _histograms(self, r: CollectorRegistry) -> None:
        self.fetch_s = Histogram(
            "baton_worker_fetch_seconds",
            "Seconds of a fetch.",
            ["transport"],
            buckets=_SECONDS,
            registry=r,
        )
        self.first_s = Histogram(
            "baton_worker_fetch_first_chunk_seconds",
            "Seconds of a fetch until its first bytes were there, verified.",
            ["transport"],
            buckets=_SHORT_SECONDS,
            registry=r,
        )
        self.exposed_s = Histogram(
            "baton_worker_fetch_exposed_seconds",
            "Seconds of a fetch after its prefill had ended.",
            ["transport"],
            buckets=_SHORT_SECONDS,
            registry=r,
        )

    def _gauges(self, r: CollectorRegistry) -> None:
        self.leases = Gauge("baton_worker_kv_leases", "Leases on this worker's blocks.", registry=r)
        self.lease_ends = Counter(
            "baton_worker_kv_lease_ends",
            "Leases ended, by why: released, expired, failed or closed.",
            ["reason"],
            registry=r,
        )
        self.quarantined_blocks = Gauge(
            "baton_worker_kv_quarantined_blocks",
            "Blocks of ended fetches that a writer may still write into.",
            registry=r,
        )


class WorkerMetrics:
    """What a prefill or decode worker measures."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.health = Health()
        self.port: int | None = None
        """Where they are served, once they are."""
        r = self.registry = registry or CollectorRegistry()
        self.accepted = Counter(
            "baton_worker_requests_accepted", "Requests taken from routers.", registry=r
        )
        self.endings = Counter(
            "baton_worker_endings",
            "Requests ended, by ending: stop, length, handed_over, aborted or a failure's code.",
            ["ending"],
            registry=r,
        )
        self.tokens = Counter("baton_worker_tokens", "Tokens sent to routers.", registry=r)
        self.refused_frames = Counter(
            "baton_worker_refused_frames", "Malformed or unexpected frames dropped.", registry=r
        )
        self.transfer = TransferMetrics(r)
        self.blocks = Gauge(
            "baton_worker_kv_blocks",
            "KV blocks: total, free, cached, leased.",
            ["state"],
            registry=r,
        )
        self.running = Gauge("baton_worker_running", "Sequences running.", registry=r)
        self.waiting = Gauge("baton_worker_waiting", "Requests waiting.", registry=r)
        self.store_up = Gauge("baton_worker_store_up", "1 while Redis answers.", registry=r)
        self.events_lost = Counter(
            "baton_worker_events_lost",
            "Block events dropped while Redis was away; the set was rewritten instead.",
            registry=r,
        )

    def serve_if_asked(self, *, host: str, port: int | None) -> None:
        """Serves `/metrics`, `/ready` and `/health` from a thread of its own until the process
        ends; None: does not. Raises SettingsError when the port cannot be had."""
        if port is None:
            return
        try:
            server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise SettingsError(f"metrics_port: cannot listen on {host}:{port}: {error}") from error
        self.port = server.server_port
        app = server.get_app()
        assert app is not None
        server.set_app(with_health(app, self.health))


class RouterMetrics:
    """What a router measures."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = self.registry = registry or CollectorRegistry()
        self.requests = Counter(
            "baton_requests", "HTTP requests, by path and status.", ["path", "status"], registry=r
        )
        self.routes = Counter(
            "baton_routes", "Placements, by reason and kind.", ["kind", "reason"], registry=r
        )
        self.retries = Counter(
            "baton_retries", "Requests placed again, by why.", ["why"], registry=r
        )
        self.endings = Counter(
            "baton_endings", "Generations ended, by ending.", ["ending"], registry=r
        )
        self.prompt_tokens = Counter("baton_prompt_tokens", "Prompt tokens.", registry=r)
        self.cached_tokens = Counter(
            "baton_cached_tokens", "Prompt tokens found in a prefix cache.", registry=r
        )
        self.output_tokens = Counter("baton_output_tokens", "Tokens generated.", registry=r)
        self.first_token_s = Histogram(
            "baton_time_to_first_token_seconds",
            "Seconds from a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=r,
        )
        self.between_tokens_s = Histogram(
            "baton_inter_token_seconds",
            "Seconds between tokens of a request.",
            buckets=_SECONDS,
            registry=r,
        )
        self.exposed_s = Histogram(
            "baton_transfer_exposed_seconds",
            "Seconds that a request waited for its KV after its prefill had ended, by transport.",
            ["transport"],
            buckets=_SHORT_SECONDS,
            registry=r,
        )
        self.request_s = Histogram(
            "baton_request_seconds",
            "Seconds from a request's arrival to its ending.",
            buckets=_SECONDS,
            registry=r,
        )
        self.active = Gauge("baton_active_requests", "Generations in progress.", registry=r)
        self.workers = Gauge(
            "baton_workers", "Workers known, by role and state.", ["role", "state"], registry=r
        )
        self.index_state = Gauge(
            "baton_prefix_index_state",
            "1 for the state the prefix index is in: exact, degraded or off.",
            ["state"],
            registry=r,
        )
        self.index_blocks = Gauge("baton_prefix_index_blocks", "Blocks indexed.", registry=r)
        self.index_gaps = Counter(
            "baton_prefix_index_gaps", "Gaps in a worker's events; its set was read.", registry=r
        )
