import math
from typing import Any
from unittest.mock import create_autospec

import pytest
from msgspec.structs import replace
from support.checkpoints import write_checkpoint
from support.routed_request import TICKET
from support.words import prefill

from engine.batch import SampledToken, SequenceId
from engine.sequence import Mode
from protocol.ids import RequestId, RouterId
from protocol.messages import (
    Aborted,
    Decode,
    Finished,
    Grammar,
    OfAttempt,
    ReadPrompt,
    Sampling,
    Step,
    ToCompute,
    ToRouter,
)
from protocol.readings import PoolPrompt, ScorePrompt
from protocol.text.tokenizer import TextState, Tokenizer
from worker.requests import (
    MAX_GRAMMAR_CHARS,
    MAX_STOP_CHARS,
    Job,
    RequestTable,
    Transfers,
    check_request,
)

HERE, THERE = RouterId("here"), RouterId("there")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_checkpoint(tmp_path_factory.mktemp("tokenizer")))


class Post:
    def __init__(self) -> None:
        self.sent: list[tuple[RouterId, ToRouter]] = []

    def __call__(self, router: RouterId, message: ToRouter) -> None:
        self.sent.append((router, message))


def job(tokenizer: Tokenizer, name: str, *, router: RouterId = HERE, **more: str) -> Job:
    stopping = Sampling(seed=1, max_tokens=8, stop=tuple(more.values()))
    return Job(
        router=router,
        request=RequestId(name),
        attempt=0,
        sequence=SequenceId(name),
        text=TextState(tokenizer, stopping),
        deadline_at=0.0,
        num_tokens=1,
        ticket=None,
        transfers=create_autospec(Transfers, instance=True),
        mode=Mode.LOCAL,
    )


def finished(of: Job) -> Finished:
    return Finished(
        request=of.request,
        attempt=of.attempt,
        reason="length",
        num_tokens=1,
        cached_tokens=0,
        queued_s=0.0,
        prefill_s=0.0,
        decode_s=0.0,
    )


def test_one_step_is_one_message_per_router_before_the_endings(tokenizer: Tokenizer) -> None:
    post = Post()
    table = RequestTable(post)
    jobs = [job(tokenizer, "a"), job(tokenizer, "b"), job(tokenizer, "c", router=THERE)]
    for one in jobs:
        assert table.add_job(one)
        assert not table.add_token(one, index=0, token=SampledToken(token_id=70))
    table.end_job(jobs[0], finished(jobs[0]))
    assert post.sent == []

    assert table.flush_step() == 3
    kinds = [(router, type(message)) for router, message in post.sent]
    assert kinds == [(HERE, Step), (THERE, Step), (HERE, Finished)]
    step = post.sent[0][1]
    assert isinstance(step, Step) and [emit.request for emit in step.emits] == ["a", "b"]
    assert table.flush_step() == 0 and len(post.sent) == 3


def test_the_token_that_ends_a_request_carries_the_text_held_back(tokenizer: Tokenizer) -> None:
    post = Post()
    table = RequestTable(post)
    held = job(tokenizer, "a", stop="dog and")
    table.add_job(held)
    ids = tokenizer.encode("a dog")
    for index, token_id in enumerate(ids):
        assert not table.add_token(held, index=index, token=SampledToken(token_id=token_id))
    table.end_text(held)
    table.end_job(held, finished(held))
    table.flush_step()
    step = post.sent[0][1]
    assert isinstance(step, Step)
    assert "".join(emit.text for emit in step.emits) == "a dog"
    assert step.emits[-1].text.endswith("dog")


def test_a_request_has_one_ending_however_many_come(tokenizer: Tokenizer) -> None:
    post = Post()
    table = RequestTable(post)
    one = job(tokenizer, "a")
    assert table.add_job(one)
    assert not table.add_job(job(tokenizer, "a"))
    table.end_job(one, finished(one))
    table.end_job(one, Aborted(request=one.request, attempt=0))
    table.end_at_once(one, Aborted(request=one.request, attempt=0))
    table.flush_step()
    assert post.sent == [(HERE, finished(one))]
    assert table.jobs() == [] and table.of_key(one.key) is None


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"token_ids": ()}, "token_ids: empty"),
        ({"token_ids": (10,)}, "token_ids"),
        ({"generated": (-1,)}, "generated"),
        ({"logit_bias": ((10, 0.0),)}, "logit_bias"),
        ({"logit_bias": ((1, 0.0),) * 11}, "logit_bias: more than"),
        ({"logit_bias": ((1, math.inf),)}, "not all are numbers"),
        ({"stop_token_ids": (3,) * 11}, "stop_token_ids: more than"),
        ({"temperature": math.nan}, "not all are numbers"),
        ({"repetition_penalty": -math.inf}, "not all are numbers"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"num_logprobs": 11}, "num_logprobs"),
        ({"reading": ScorePrompt(first=0)}, "reading: from token 0"),
        ({"reading": ScorePrompt(first=9)}, "reading: from token 9"),
        ({"reading": ScorePrompt(num_top=129)}, "129 at each"),
        ({"stop": ("x" * MAX_STOP_CHARS, "x")}, "stop"),
        ({"stop": ("",)}, "stop"),
        ({"allowed_token_ids": (10,)}, "allowed_token_ids"),
        ({"allowed_token_ids": (1,) * 11}, "allowed_token_ids: more than"),
        ({"marks": (-1,)}, "marks"),
        ({"grammar": Grammar(text="x" * (MAX_GRAMMAR_CHARS + 1))}, "grammar: more than"),
        ({"grammar": Grammar(text="x", begins_after=((10,),))}, "begins_after"),
        ({"grammar": Grammar(text="x", begins_after=((1,), ()))}, "begins_after: a run of no"),
        ({"grammar": Grammar(text="x", begins_after=((1,) * 2000,))}, "begins_after"),
    ],
)
def test_what_a_router_should_have_refused_is_refused(changes: dict[str, Any], what: str) -> None:
    """It would harm others of the batch."""
    good = prefill()
    asked = {k: v for k, v in changes.items() if k in ("token_ids", "generated", "reading")}
    rule = {k: v for k, v in changes.items() if k not in asked}
    bad = replace(good, sampling=replace(good.sampling, **rule), **asked)
    with pytest.raises(ValueError, match=what):
        check_request(bad, vocab_size=10)
    check_request(good, vocab_size=10)


@pytest.mark.parametrize("other", [{"ticket": TICKET}, {"reading": ScorePrompt()}])
def test_a_fork_has_neither_a_ticket_nor_a_reading(other: dict[str, Any]) -> None:
    asked = {name: getattr(prefill(), name) for name in ToCompute.__struct_fields__}
    fork = Decode(**asked, ticket=None, fork_of=OfAttempt(request=RequestId("a"), attempt=1))
    check_request(fork, vocab_size=10)
    with pytest.raises(ValueError, match="fork_of"):
        check_request(replace(fork, **other), vocab_size=10)


def test_a_prompt_that_is_read_has_no_more_than_a_token_after_it_and_one_worker() -> None:
    asked = {name: getattr(prefill(), name) for name in ToCompute.__struct_fields__}
    for max_tokens in (0, 1):
        rule = Sampling(seed=1, max_tokens=max_tokens)
        check_request(ReadPrompt(**asked | {"sampling": rule, "generated": ()}), vocab_size=10)
    for wrong in ({"sampling": Sampling(seed=1, max_tokens=2)}, {"generated": (1,)}):
        one = {"sampling": Sampling(seed=1, max_tokens=1), "generated": ()}
        with pytest.raises(ValueError, match="max_tokens"):
            check_request(ReadPrompt(**asked | one | wrong), vocab_size=10)
    apart = Decode(**asked | {"reading": PoolPrompt(kind="cls")}, ticket=TICKET)
    with pytest.raises(ValueError, match="computed elsewhere"):
        check_request(apart, vocab_size=10)
