"""What the log, the metrics and the traces keep of a router's requests."""

import logging

from protocol.process.metrics import RouterMetrics
from router.failover.stall import Awaited
from router.placement.place import Placement
from router.requests.context import RequestContext
from router.requests.instructions import PlaceAgain
from router.requests.trace import RequestTrace, TraceRing

log = logging.getLogger("baton.dispatch")


class Recorder:
    def __init__(self, *, metrics: RouterMetrics, traces: TraceRing) -> None:
        self._metrics = metrics
        self._traces = traces
        self.note_gap = metrics.between_tokens_s.observe
        """Between two tokens of a request, in seconds."""

    def note_opened(self) -> None:
        self._metrics.active.inc()

    def note_placed(self, context: RequestContext, placement: Placement) -> None:
        kind = "apart" if placement.prefill is not None else "alone"
        if placement.fork_of is not None:
            kind = "forked"
        why = "retry" if context.reasons else "first"
        self._metrics.routes.labels(kind=kind, reason=why).inc()
        pair = {"prefill": placement.prefill, "decode": placement.decode}
        log.info("placed", extra={**_named(context), **pair, "why": placement.reason})

    def note_token(self, context: RequestContext, *, now: float) -> None:
        if context.first_token_at is None:
            context.first_token_at = now
            self._metrics.first_token_s.observe(now - context.begun_at)
        else:
            self.note_gap(now - context.last_token_at)
        context.last_token_at = now

    def note_loss(self, context: RequestContext, loss: PlaceAgain) -> None:
        why = "refused" if loss.is_refusal else "stalled" if loss.is_stall else "lost"
        self._metrics.retries.labels(why=why).inc()
        remedy = "none, it is placed again; if it happens often, see the log of that worker"
        log.warning("attempt lost", extra={**_named(context), "why": loss.why, "remedy": remedy})

    def note_stall(self, context: RequestContext, why: str, awaited: Awaited) -> None:
        self._metrics.stalled.labels(what=awaited).inc()
        remedy = "see that worker's log: it was stopped, it hangs, or its machine is overloaded"
        log.warning("stalled", extra={**_named(context), "why": why, "remedy": remedy})

    def note_retries_spent(self, context: RequestContext) -> None:
        self._metrics.retries_spent.inc()
        remedy = "see why attempts are lost, or give `retry_share` more"
        log.error("retries spent", extra={**_named(context), "remedy": remedy})

    def note_poison(self, context: RequestContext, why: str) -> None:
        remedy = "report it with the last words of the workers it was on"
        extra = {"request": context.routed.wire_id, "why": why, "remedy": remedy}
        log.error("request ends workers", extra=extra)

    def note_ended(self, context: RequestContext, *, now: float) -> None:
        """However it ended."""
        routed, metrics = context.routed, self._metrics
        metrics.active.dec()
        trace = context.final_trace or context.trace(now=now)
        self._traces.add(trace, now=now)
        _log_request(context, trace)
        metrics.endings.labels(ending=routed.outcome.partition(":")[0]).inc()
        metrics.prompt_tokens.inc(len(context.request.token_ids))
        metrics.cached_tokens.inc(routed.cached_tokens or 0)
        self._count_prefix(context)
        metrics.output_tokens.inc(len(routed.generated))
        metrics.request_s.observe(now - context.begun_at)
        for attempt in routed.attempts:
            if attempt.transport:
                metrics.exposed_s.labels(attempt.transport).observe(attempt.exposed_s)

    def _count_prefix(self, context: RequestContext) -> None:
        """Of requests whose worker told what it had found: the kinds are of the same prompts."""
        found, num_hit = context.found, context.routed.cached_tokens
        if found is None or num_hit is None:
            return
        tokens = self._metrics.prefix_tokens
        tokens.labels(kind="prompt").inc(len(context.request.token_ids))
        tokens.labels(kind="hit").inc(num_hit)
        tokens.labels(kind="predicted").inc(found.num_predicted_tokens)
        tokens.labels(kind="held_anywhere").inc(found.num_held_tokens)
        tokens.labels(kind="seen").inc(found.num_seen_tokens)


def _log_request(context: RequestContext, trace: RequestTrace) -> None:
    """The one line of a request: numbers and names, nothing of what was asked or answered."""
    request, last = context.request, trace.attempts[-1] if trace.attempts else None
    predicted = None if last is None else last.predicted
    line: dict[str, object] = {
        "request": context.routed.wire_id,
        "outcome": trace.outcome,
        "tenant": request.tenant,
        "priority": request.priority,
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": trace.output_tokens,
        "cached_tokens": trace.cached_tokens,
        "predicted_cached_tokens": trace.predicted_cached_tokens,
        "held_cached_tokens": trace.held_cached_tokens,
        "bytes_moved": trace.bytes_moved,
        "num_retries": trace.num_retries,
        "num_stalled": trace.num_stalled,
        "num_refused": trace.num_refused,
        "waited_s": round(trace.waited_s, 6),
        "first_token_s": round(trace.first_token_s, 6),
        "total_s": round(trace.total_s, 6),
    }
    if last is not None:
        pair = {"prefill": last.prefill, "decode": last.decode, "transport": last.transport}
        line |= pair | {"why": last.reason}
    if predicted is not None:
        line["predicted_first_token_s"] = round(predicted.first_token_s, 6)
    log.info("request", extra=line)


def _named(context: RequestContext) -> dict[str, object]:
    return {"request": context.routed.wire_id, "attempt": context.routed.attempt}
