"""What one process of a router asks another."""

import msgspec

from protocol.ids import RequestId, RouterId


class AskMetrics(msgspec.Struct, frozen=True, tag="metrics"):
    """Answered with an exposition in Prometheus' text format."""


class AskTraces(msgspec.Struct, frozen=True, kw_only=True, tag="traces"):
    """Answered with those of this request in JSON, as `/requests/{id}` has them; maybe none."""

    request: RequestId


class AskProcess(msgspec.Struct, frozen=True, tag="process"):
    """Answered with a `ProcessView` in JSON."""


class ProcessView(msgspec.Struct, frozen=True, kw_only=True):
    process: int
    """Its number, from 0."""
    router: RouterId
    """Under which workers know it."""
    pid: int
    num_in_flight: int
    """Choices being generated."""


Question = AskMetrics | AskTraces | AskProcess
"""Closed: whoever answers, answers all."""
to_question: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)
"""Raises msgspec.MsgspecError for anything else."""
