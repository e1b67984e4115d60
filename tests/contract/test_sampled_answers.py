"""Answers of a model without sense, held to JSON Schemas by a real engine: each fits its own."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from support.json_schemas import CASES, CLOSERS, Case
from support.live_service import LiveService, live_service

from protocol.ids import RequestId
from protocol.messages import Finished, Grammar, Sampling
from protocol.text.grammar import GrammarTokenizer, Matcher
from protocol.text.structured.grammars import JsonStyle, json_grammar
from tools.make_checkpoint import Shape, make_checkpoint

SHORT = 16
"""Tokens after which some answers are cut."""
LONG = 300
BATCH = 32
ROUNDS = 9
"""Until as many answers as wanted have stopped; a few schemas let most go on for long."""
STYLE = JsonStyle(closed=True, whitespace="[ ]?")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    path = tmp_path_factory.mktemp("sampled")
    make_checkpoint(path, Shape(context=512, vocab=512))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with live_service(path, max_running=BATCH, kv_blocks=3000, max_waiting=10_000) as live:
        yield live
    torch.set_num_threads(before)


def ask(live: LiveService, name: str, text: str, *, seed: int, max_tokens: int) -> None:
    """Brings an end nearer more often than it would come by itself."""
    encode = live.tokenizer.encode
    likely = {encode(closer)[0] for closer in CLOSERS} | {*live.tokenizer.eos_token_ids}
    rule = Sampling(
        seed=seed,
        max_tokens=max_tokens,
        grammar=Grammar(text=text),
        logit_bias=tuple((token_id, 5.0) for token_id in sorted(likely)),
    )
    live.ask(name, (5, 6, 7 + seed % 400), rule)


@dataclass(frozen=True, slots=True)
class Answer:
    case: Case
    tokens: list[int]
    stopped: bool


def answers(
    live: LiveService, cases: Sequence[Case], seeds: range, *, max_tokens: int
) -> Iterator[Answer]:
    """One of each schema and seed, all asked at once."""
    asked: dict[RequestId, Case] = {}
    for case in cases:
        text = json_grammar(case.schema, STYLE)
        for seed in seeds:
            name = RequestId(f"{case.name}.{max_tokens}.{seed}")
            asked[name] = case
            ask(live, name, text, seed=seed, max_tokens=max_tokens)
    live.wait_ended(asked, within_s=240.0)
    endings, tokens = live.endings(), live.all_tokens()
    for name, case in asked.items():
        (ending,) = endings[name]
        assert isinstance(ending, Finished), ending
        yield Answer(case, tokens[name], ending.reason == "stop")


def check_sampled(live: LiveService, *, num: int, first_seed: int) -> None:
    """So many of each schema that stopped. Asks again where some were cut, but not for ever."""
    stopped = Counter[str]()
    for seed in range(first_seed, first_seed + ROUNDS * num, num):
        cases = [case for case in CASES if stopped[case.name] < num]
        for answer in answers(live, cases, range(seed, seed + num), max_tokens=LONG):
            if answer.stopped:
                text = live.tokenizer.decode(answer.tokens)
                assert answer.case.is_valid(json.loads(text)), text
                stopped[answer.case.name] += 1
    assert [case.name for case in CASES if stopped[case.name] < num] == []


def test_sampled_answers_fit_their_schemas(live: LiveService) -> None:
    """Walks of as many tokens, twenty of each schema, are in tests/unit."""
    check_sampled(live, num=1, first_seed=0)


def test_answers_cut_by_length_begin_ones_that_fit(live: LiveService) -> None:
    vocabulary = GrammarTokenizer(live.tokenizer)
    cut = 0
    for answer in answers(live, CASES, range(1), max_tokens=SHORT):
        follower = Matcher.compile(json_grammar(answer.case.schema, STYLE), vocabulary)
        assert [token_id for token_id in answer.tokens if not follower.accept(token_id)] == []
        cut += not answer.stopped
    assert cut > len(CASES) // 4


@pytest.mark.long
def test_a_hundred_sampled_answers_of_each_schema_fit(live: LiveService) -> None:
    check_sampled(live, num=100, first_seed=1000)
