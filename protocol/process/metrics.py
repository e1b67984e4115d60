"""Every metric of every process: its name, what it counts, its labels and its buckets."""

import re
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily

from protocol.process.health import Health, serve_metrics

M = TypeVar("M", bound="Counter | Gauge | Histogram | TokenHistogram")

_SHORT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class TokenHistogram:
    """A histogram for what is observed of every token: 0.2 us each, where `Histogram` takes a lock
    and 1.5 us. One thread observes; a scrape in another may miss the last one."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        assert not labels, f"{name}: of one series"
        self._name, self._text = name, text
        self.bounds, self.counts = array("d", buckets), array("q", [0] * (1 + len(buckets)))
        self.sum = array("d", [0.0])
        """Where they lie, C may count too; they never move."""
        registry.register(self)

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum[0] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds = [*map(str, self.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self.counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self.sum[0])


class MetricRow(Generic[M]):
    """One metric of a table; of a table that is made, the metric itself."""

    def __init__(
        self,
        kind: Callable[..., M],
        name: str,
        text: str,
        *labels: str,
        buckets: Sequence[float] = (),
        shared: bool = False,
    ) -> None:
        """`shared`: every process of a router would say the same."""
        self.name, self.shared = name, shared
        more = {"buckets": buckets} if buckets else {}
        self.made_in = partial(kind, name, text, labels, **more)
        """The metric in a registry."""

    def __get__(self, table: object, owner: type) -> M:
        raise AttributeError(f"{self.name} is not made: {owner.__name__} is a table alone")


class MetricTable:
    """Metrics declared as rows, made in a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        for name, row in vars(type(self)).items():
            if isinstance(row, MetricRow):
                setattr(self, name, row.made_in(registry=self.registry))

    @property
    def shared_names(self) -> frozenset[str]:
        rows = vars(type(self)).values()
        return frozenset(row.name for row in rows if isinstance(row, MetricRow) and row.shared)


class TransferMetrics(MetricTable):
    """How KV moves, as the worker that fetches it or lends it sees it."""

    # fmt: off
    transports = MetricRow(
        Counter, "baton_kv_transport",
        "Links to sources, by event: chosen (a transport is in use), fallback (it is, instead"
        " of an earlier one of the settings, and why), refused (none may be used, and why).",
        "event", "transport", "instead_of", "reason")
    fetches = MetricRow(
        Counter, "baton_worker_fetches",
        "KV fetches ended, by transport and ending: landed, lost or aborted.",
        "transport", "ending")
    moved_bytes = MetricRow(
        Counter, "baton_worker_kv_moved_bytes", "Bytes of KV fetched.", "transport")
    lent_bytes = MetricRow(
        Counter, "baton_worker_kv_lent_bytes",
        "Bytes of KV offered to fetchers, counting those offered again.", "transport")
    fetch_s = MetricRow(
        Histogram, "baton_worker_fetch_seconds", "Seconds of a fetch.",
        "transport", buckets=_SECONDS)
    first_s = MetricRow(
        Histogram, "baton_worker_fetch_first_chunk_seconds",
        "Seconds of a fetch until its first bytes were there, verified.",
        "transport", buckets=_SHORT_SECONDS)
    exposed_s = MetricRow(
        Histogram, "baton_worker_fetch_exposed_seconds",
        "Seconds of a fetch after its prefill had ended.", "transport", buckets=_SHORT_SECONDS)
    retries = MetricRow(
        Counter, "baton_worker_fetch_retries",
        "Times that a fetch asked again for what it lacked.")
    rejected_blocks = MetricRow(
        Counter, "baton_worker_kv_rejected_blocks",
        "KV blocks that arrived and were not used, by why.", "reason")
    kept_blocks = MetricRow(
        Counter, "baton_worker_kv_kept_blocks",
        "KV blocks that had arrived when their fetch was lost, and need not be fetched again.")
    pulls = MetricRow(
        Counter, "baton_worker_prefix_pulls",
        "Prefixes that a peer was believed to have cached, by what became of them: landed,"
        " declined (the peer had or lent no more of it), lost, late, aborted, or refused (not"
        " begun here).", "outcome")
    pulled_tokens = MetricRow(
        Counter, "baton_worker_pulled_tokens", "Prompt tokens whose KV came from a peer's cache.")
    pulled_bytes = MetricRow(
        Counter, "baton_worker_pulled_bytes", "Bytes of KV pulled from peers' caches.",
        "transport")
    pull_s = MetricRow(
        Histogram, "baton_worker_pull_seconds", "Seconds of a pull that landed.",
        "transport", buckets=_SHORT_SECONDS)
    loans_asked = MetricRow(
        Counter, "baton_worker_loans_asked",
        "Prefixes that peers asked for, by answer: lent or nothing.", "answer")
    loans = MetricRow(
        Gauge, "baton_worker_loans", "Leases on blocks of this worker's prefix cache.")
    leases = MetricRow(
        Gauge, "baton_worker_kv_leases", "Leases on blocks of this worker's requests.")
    lease_ends = MetricRow(
        Counter, "baton_worker_kv_lease_ends",
        "Leases ended, by why: released, expired, failed or closed.", "reason")
    quarantined_blocks = MetricRow(
        Gauge, "baton_worker_kv_quarantined_blocks",
        "Blocks of ended fetches that a writer may still write into.")
    # fmt: on

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self.reasons = Reasons()


class WorkerMetrics(MetricTable):
    """What a prefill or decode worker measures."""

    # fmt: off
    accepted = MetricRow(Counter, "baton_worker_requests_accepted", "Requests taken from routers.")
    endings = MetricRow(
        Counter, "baton_worker_endings",
        "Requests ended, by ending: stop, length, handed_over, aborted or a failure's code.",
        "ending")
    tokens = MetricRow(Counter, "baton_worker_tokens", "Tokens sent to routers.")
    refused_frames = MetricRow(
        Counter, "baton_worker_refused_frames", "Malformed or unexpected frames dropped.")
    blocks = MetricRow(
        Gauge, "baton_worker_kv_blocks", "KV blocks: total, free, cached, leased.", "state")
    running = MetricRow(Gauge, "baton_worker_running", "Sequences running.")
    waiting = MetricRow(Gauge, "baton_worker_waiting", "Requests waiting.")
    forks = MetricRow(
        Gauge, "baton_worker_forks", "Choices that went on from the KV of another, so far.")
    start_s = MetricRow(
        Gauge, "baton_worker_start_seconds",
        "Seconds of this start, by phase: modules, fetch, load, kernels, warm.", "phase")
    canaries = MetricRow(
        Counter, "baton_worker_canaries",
        "Blocks fetched from peers to see whether KV comes from them: landed, declined (the peer"
        " answered and had none to spare), failed, or skipped (none to spare here).", "outcome")
    unreachable = MetricRow(
        Gauge, "baton_worker_unreachable_peers",
        "Peers from which no KV came when last tried; routers do not pair them with this worker.")
    store_up = MetricRow(Gauge, "baton_worker_store_up", "1 while Redis answers.")
    events_lost = MetricRow(
        Counter, "baton_worker_events_lost",
        "Block events dropped while Redis was away; the set was rewritten instead.")
    # fmt: on

    def __init__(self) -> None:
        super().__init__()
        self.transfer = TransferMetrics(self.registry)
        self.health = Health()
        self.port: int | None = None
        """Where they are served, once they are."""

    def serve_if_asked(self, *, host: str, port: int | None) -> None:
        """Serves `/metrics`, `/ready` and `/health` from a thread of its own until the process
        ends; None: does not. Raises SettingsError when the port cannot be had."""
        if port is None:
            return
        self.port = serve_metrics(self.registry, self.health, host=host, port=port)


class RouterMetrics(MetricTable):
    """What a router measures."""

    # fmt: off
    requests = MetricRow(
        Counter, "baton_requests", "HTTP requests, by path and status.", "path", "status")
    routes = MetricRow(
        Counter, "baton_routes", "Placements, by reason and kind.", "kind", "reason")
    retries = MetricRow(Counter, "baton_retries", "Requests placed again, by why.", "why")
    stalled = MetricRow(
        Counter, "baton_router_stalled",
        "Attempts given up because a worker that lives stood still, by what it owed: first_token"
        " or next_token.", "what")
    retries_spent = MetricRow(
        Counter, "baton_router_retries_spent",
        "Requests failed because the fleet's retries were spent (`retry_share`).")
    endings = MetricRow(Counter, "baton_endings", "Generations ended, by ending.", "ending")
    prompt_tokens = MetricRow(Counter, "baton_prompt_tokens", "Prompt tokens.")
    cached_tokens = MetricRow(
        Counter, "baton_cached_tokens", "Prompt tokens found in a prefix cache.")
    output_tokens = MetricRow(Counter, "baton_output_tokens", "Tokens generated.")
    first_token_s = MetricRow(
        Histogram, "baton_time_to_first_token_seconds",
        "Seconds from a request's arrival to its first token.", buckets=_SECONDS)
    between_tokens_s = MetricRow(
        TokenHistogram, "baton_inter_token_seconds", "Seconds between tokens of a request.",
        buckets=_SECONDS)
    slow_clients = MetricRow(
        Counter, "baton_router_slow_clients",
        "Clients cut off because too much of their answer waited for them.")
    exposed_s = MetricRow(
        Histogram, "baton_transfer_exposed_seconds",
        "Seconds that a request waited for its KV after its prefill had ended, by transport.",
        "transport", buckets=_SHORT_SECONDS)
    request_s = MetricRow(
        Histogram, "baton_request_seconds",
        "Seconds from a request's arrival to its ending.", buckets=_SECONDS)
    active = MetricRow(Gauge, "baton_active_requests", "Generations in progress.")
    workers = MetricRow(
        Gauge, "baton_workers", "Workers known, by role and state.", "role", "state", shared=True)
    pool_blocks = MetricRow(
        Gauge, "baton_pool_kv_blocks",
        "KV blocks of the workers, by role and state: total, free, cached, leased.",
        "role", "state", shared=True)
    pool_requests = MetricRow(
        Gauge, "baton_pool_requests",
        "Requests at the workers, by role and state: running, waiting.",
        "role", "state", shared=True)
    index_state = MetricRow(
        Gauge, "baton_prefix_index_state",
        "1 for the state the prefix index is in: exact, degraded or off.", "state")
    index_blocks = MetricRow(Gauge, "baton_prefix_index_blocks", "Blocks indexed.")
    index_gaps = MetricRow(
        Counter, "baton_prefix_index_gaps", "Gaps in a worker's events; its set was read.")
    index_refused = MetricRow(
        Counter, "baton_prefix_index_refused_blocks",
        "Blocks that the prefix index had no room for (`index_blocks`).")
    prefix_tokens = MetricRow(
        Counter, "baton_router_prefix_tokens",
        "Of prompts whose worker told what it had cached, tokens by kind: prompt (all), hit"
        " (cached there), predicted (by the index, when it was placed), held_anywhere (by the"
        " worker that had most of it), seen (in any prompt before, or held anywhere).",
        "kind")
    queue_requests = MetricRow(
        Gauge, "baton_router_queue_requests",
        "Requests that wait in the router, by band: urgent (priority below 0), normal, patient.",
        "band")
    queue_tokens = MetricRow(
        Gauge, "baton_router_queue_tokens", "Tokens, as expected, of requests that wait.")
    queue_wait_s = MetricRow(
        Histogram, "baton_router_queue_wait_seconds",
        "Seconds that requests waited in the router until a worker took them, by band.",
        "band", buckets=_SECONDS)
    shed = MetricRow(
        Counter, "baton_router_shed",
        "Requests sent away from the queue, by why: full, share, wait or deadline.", "reason")
    limited = MetricRow(
        Counter, "baton_router_limited",
        "Requests refused by a limit of their API key: requests or tokens.", "limit")
    limits_leased = MetricRow(
        Gauge, "baton_router_limits_leased",
        "1 while limits are shared between routers by Redis, 0 while each enforces its part.")
    keys = MetricRow(Gauge, "baton_router_api_keys", "API keys of the keys file in force.")
    key_reloads = MetricRow(
        Counter, "baton_router_key_reloads",
        "Times that the keys file had changed, by outcome: loaded, or refused.", "outcome")
    alias_reloads = MetricRow(
        Counter, "baton_router_alias_reloads",
        "Times that the aliases file had changed, by outcome: loaded, or refused.", "outcome")
    texts = MetricRow(Gauge, "baton_router_texts", "Texts of models that are read.")
    text_fetches = MetricRow(
        Counter, "baton_router_text_fetches",
        "Times that a text was looked for, by outcome: kept (on disk here), had (of a worker), "
        "lost (that worker was, or sent something else), refused (it is of no use).", "outcome")
    # fmt: on


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
