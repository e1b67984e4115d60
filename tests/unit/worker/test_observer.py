"""A text that cannot be made ends its own request."""

from typing import cast
from unittest.mock import create_autospec

import pytest
from support.services import ROUTER, ServiceBench, small_tokenizer
from support.words import decode

from engine.batch import SampledToken
from engine.loop import Engine
from engine.observer import SequenceToken
from engine.sequence import Complete, Mode, SequenceUsage
from protocol.messages import Failed, Finished, Sampling, Step
from protocol.process.metrics import WorkerMetrics
from protocol.text.tokenizer import TextState, TextStep
from worker.requests import RequestTable, Transfers

USAGE = SequenceUsage(num_tokens=1, cached_tokens=0, queued_s=0, prefill_s=0, decode_s=0)


class NoFeed(TextState):
    def feed(self, token_id: int) -> TextStep:
        raise RecursionError("too deep")


class NoFlush(TextState):
    def flush(self) -> str:
        raise RecursionError("too deep")


@pytest.mark.parametrize("bad_text", [NoFeed, NoFlush])
def test_a_text_that_fails_ends_its_request_and_the_step_goes_on(bad_text: type[TextState]) -> None:
    table: list[RequestTable] = []

    def transfers(engine: Engine, requests: RequestTable, metrics: WorkerMetrics) -> Transfers:
        table.append(requests)
        made = create_autospec(Transfers, instance=True)
        made.mode_of.return_value = Mode.LOCAL
        return cast(Transfers, made)

    bench = ServiceBench(transfers)
    for name in ("bad", "good"):
        bench.service.accept_request(ROUTER, decode(name))
    bad, good = (one.id for one in bench.engine.submitted)
    job = table[0].of_sequence(bad)
    assert job is not None
    job.text = bad_text(small_tokenizer(), Sampling(seed=1, max_tokens=8))
    tokens = [SequenceToken(id=i, index=0, token=SampledToken(token_id=70)) for i in (bad, good)]
    assert bench.observer.step(tokens) == ({bad} if bad_text is NoFeed else set())
    for one in (bad, good):
        bench.observer.ended(one, Complete("length"), USAGE)
    bench.observer.settled()
    step, *endings = bench.story.told
    assert isinstance(step, Step) and "good" in {emit.request for emit in step.emits}
    first, second = endings
    assert isinstance(first, Failed) and isinstance(second, Finished)
    assert (first.request, first.code, first.retryable) == ("bad", "internal", False)
    assert second.request == "good" and not table[0].jobs()
