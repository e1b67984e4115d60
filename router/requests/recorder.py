"""What the log, the metrics and the traces keep of a router's requests."""

import logging

from protocol.process.metrics import RouterMetrics
from router.placement.place import Placement
from router.requests.context import RequestContext
from router.requests.instructions import PlaceAgain
from router.requests.trace import TraceRing

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
        self._metrics.retries.labels(why="refused" if loss.is_refusal else "lost").inc()
        remedy = "none, it is placed again; if it happens often, see the log of that worker"
        log.warning("attempt lost", extra={**_named(context), "why": loss.why, "remedy": remedy})

    def note_poison(self, context: RequestContext, why: str) -> None:
        remedy = "report it with the last words of the workers it was on"
        extra = {"request": context.routed.wire_id, "why": why, "remedy": remedy}
        log.error("request ends workers", extra=extra)

    def note_ended(self, context: RequestContext, *, now: float) -> None:
        """However it ended."""
        routed, metrics = context.routed, self._metrics
        metrics.active.dec()
        self._traces.add(context.final_trace or context.trace(now=now))
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


def _named(context: RequestContext) -> dict[str, object]:
    return {"request": context.routed.wire_id, "attempt": context.routed.attempt}
