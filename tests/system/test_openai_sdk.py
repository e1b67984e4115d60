"""The openai SDK, unmodified, against real processes: the calls of docs/api.md, on models/tiny.

One prefill and one decode worker, and every prompt is handed over. Refusals that need a failing
cluster are in `tests/api`.
"""

import asyncio
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field
from support.cluster import TINY, Cluster
from support.eventually import eventually

pytestmark = [pytest.mark.system, pytest.mark.slow]

MODEL = TINY.name
FACTS = "The code of the lantern is 405. The home of Mira is Rome. "
QUESTION = FACTS + "What is the home of Mira?"
HOME: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
NO_SPECIAL = {"logit_bias": {"0": -100, "1": -100, "2": -100}}
"""Neither an end of text nor anything else that the text does not show."""
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24, **NO_SPECIAL}
SAMPLED: dict[str, Any] = {"temperature": 2, "max_tokens": 24, **NO_SPECIAL}
ENDLESS: dict[str, Any] = {"max_tokens": 1900, **NO_SPECIAL}


@pytest.fixture(scope="module")
def cluster(apart_cluster: Cluster) -> Cluster:
    return apart_cluster


@pytest.fixture(scope="module")
def sdk(cluster: Cluster) -> Iterator[OpenAI]:
    with cluster.openai() as client:
        yield client


def test_a_chat_is_answered_from_its_prompt_and_counted(sdk: OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(
        model=MODEL, messages=HOME, temperature=0, max_completion_tokens=40
    )
    answer = raw.parse()
    assert "prefill-0" in raw.headers["x-baton-route"]
    assert "Rome" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 20
    assert 3 < answer.usage.completion_tokens < 40
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_answers_given_back_are_a_cached_prefix(sdk: OpenAI) -> None:
    said = sdk.chat.completions.create(model=MODEL, messages=HOME, temperature=0, max_tokens=40)
    more = [*HOME, said.choices[0].message, {"role": "user", "content": "And the code?"}]
    answer = sdk.chat.completions.create(model=MODEL, messages=more, max_tokens=4)  # type: ignore[arg-type]
    assert said.usage is not None
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert said.usage.prompt_tokens - 16 <= cached < answer.usage.prompt_tokens


def test_a_streamed_chat_says_the_same_piece_by_piece_and_ends_with_usage(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HOME, "temperature": 0}
    whole = sdk.chat.completions.create(max_completion_tokens=5, **asked)
    with sdk.chat.completions.create(
        max_completion_tokens=5, stream=True, stream_options={"include_usage": True}, **asked
    ) as stream:
        chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len([choice for choice in choices if choice.delta.content]) > 2
    said = "".join(choice.delta.content or "" for choice in choices)
    assert said == whole.choices[0].message.content
    assert choices[-1].finish_reason == whole.choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 5


def test_a_stream_without_the_option_carries_no_usage(sdk: OpenAI) -> None:
    with sdk.completions.create(model=MODEL, prompt="One", max_tokens=3, stream=True) as stream:
        assert all(chunk.usage is None for chunk in stream)


def test_the_sdks_stream_reader_puts_two_choices_together(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HOME, "n": 2, "seed": 5, "max_tokens": 12}
    whole = sdk.chat.completions.create(**asked)
    with sdk.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1]
    assert [c.message.content for c in final.choices] == [c.message.content for c in whole.choices]


def test_choices_differ_and_share_one_prompt_in_the_usage(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The rain", "seed": 3, **SAMPLED}
    answer = sdk.completions.create(n=2, **asked)
    alone = sdk.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text != answer.choices[1].text
    assert answer.choices[0].text == alone.choices[0].text
    assert answer.usage is not None and alone.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.usage.completion_tokens == 2 * 24


def test_the_same_seed_repeats_and_another_does_not(sdk: OpenAI) -> None:
    def sample(seed: int) -> str:
        answer = sdk.completions.create(model=MODEL, prompt="The rain", seed=seed, **SAMPLED)
        text: str = answer.choices[0].text
        return text

    assert sample(11) == sample(11) != sample(12)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens_ends_the_text_before_it(sdk: OpenAI, stream: bool) -> None:
    free = sdk.completions.create(model=MODEL, prompt=FACTS, logprobs=0, **GREEDY)
    assert free.choices[0].logprobs is not None
    tokens = free.choices[0].logprobs.tokens or []
    text = "".join(tokens)
    stop = tokens[9][-1:] + tokens[10] + tokens[11][:1]
    answer = sdk.completions.create(
        model=MODEL, prompt=FACTS, stop=["never said", stop], stream=stream, **GREEDY
    )
    chunks = [answer] if isinstance(answer, openai.types.Completion) else list(answer)
    said = "".join(chunk.choices[0].text for chunk in chunks)
    assert said == text[: text.index(stop)]
    ending = chunks[-1].choices[0]
    assert (ending.finish_reason, ending.to_dict()["stop_reason"]) == ("stop", stop)


def test_chat_logprobs_rank_the_greedy_token_first(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL, messages=HOME, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None and len(content) == 5
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    for entry in content:
        ranked = [top.logprob for top in entry.top_logprobs]
        assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True)
        assert entry.top_logprobs[0].token == entry.token
        assert entry.logprob == ranked[0] <= 0
        assert bytes(entry.bytes or []).decode() == entry.token


def test_streamed_logprobs_are_those_of_the_whole_answer(sdk: OpenAI) -> None:
    whole = sdk.completions.create(model=MODEL, prompt=FACTS, logprobs=2, **GREEDY)
    stream = sdk.completions.create(model=MODEL, prompt=FACTS, logprobs=2, stream=True, **GREEDY)
    expected = whole.choices[0].logprobs
    parts = [c.choices[0].logprobs for c in stream if c.choices and c.choices[0].logprobs]
    assert expected is not None and expected.token_logprobs is not None
    assert [t for part in parts for t in part.tokens or []] == expected.tokens
    assert [o for part in parts for o in part.text_offset or []] == expected.text_offset
    values = [v for part in parts for v in part.token_logprobs or []]
    assert values == pytest.approx(expected.token_logprobs, abs=1e-3)


def test_prompts_of_every_kind_are_answered_in_their_order(sdk: OpenAI) -> None:
    def texts(prompt: Any) -> list[str]:
        answer = sdk.completions.create(model=MODEL, prompt=prompt, **GREEDY)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    ids = [[40, 50, 60], [70, 80, 90, 100]]
    assert texts(["The rain", "Greta"]) == texts("The rain") + texts("Greta")
    assert texts(ids) == texts(ids[0]) + texts(ids[1])


def test_echo_and_extras_reach_the_workers(sdk: OpenAI) -> None:
    extras = {"ignore_eos": True, "top_k": 1, "min_tokens": 4, "repetition_penalty": 1.1}
    answer = sdk.completions.create(
        model=MODEL, prompt="Greta", echo=True, max_tokens=6, extra_body=extras
    )
    again = sdk.completions.create(model=MODEL, prompt="Greta", max_tokens=6, extra_body=extras)
    assert answer.choices[0].text == "Greta" + again.choices[0].text


def test_a_response_is_the_chats_answer_piece_by_piece_too(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0}
    said = sdk.chat.completions.create(messages=HOME, max_completion_tokens=24, **asked)
    asked |= {"input": QUESTION, "max_output_tokens": 24}
    whole = sdk.responses.create(**asked)
    with sdk.responses.stream(**asked) as stream:
        final = stream.get_final_response()
    assert whole.output_text == final.output_text == said.choices[0].message.content
    assert whole.usage is not None and said.usage is not None
    assert whole.usage.input_tokens == said.usage.prompt_tokens
    assert whole.usage.output_tokens == said.usage.completion_tokens


def test_a_conversation_goes_on_from_a_response_that_was_kept(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "store": True}
    first = sdk.responses.create(input=QUESTION, max_output_tokens=24, **asked)
    second = sdk.responses.create(
        input="And the code?", previous_response_id=first.id, max_output_tokens=4, **asked
    )
    assert first.usage is not None and second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens - 16
    assert sdk.responses.retrieve(second.id) == second
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.create(input="x", previous_response_id=first.id, **asked)


def test_the_one_model_is_listed(sdk: OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL]
    assert sdk.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-4")


def test_an_unknown_model_is_404(sdk: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4") as raised:
        sdk.chat.completions.create(model="gpt-4", messages=HOME)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_a_prompt_that_does_not_fit_is_400_with_the_numbers(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.completions.create(model=MODEL, prompt=[7] * 2000, max_tokens=100)
    assert raised.value.code == "context_length_exceeded"
    for number in ("2048", "2000", "100"):
        assert number in raised.value.message


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("nonsense", 1, "unknown_parameter"),
        ("functions", [{"name": "f"}], "unsupported_parameter"),
        ("max_tokens", "ten", None),
        ("temperature", 3, None),
        ("stop", [1], None),
        ("n", 0, None),
    ],
)
def test_what_is_wrong_in_a_request_is_400_naming_the_field(
    sdk: OpenAI, field: str, value: object, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError, match=field) as raised:
        sdk.chat.completions.create(model=MODEL, messages=HOME, extra_body={field: value})
    assert raised.value.code == code
    assert (raised.value.param or "").startswith(field)


def test_a_stream_that_its_client_closes_ends_on_all_workers(cluster: Cluster, sdk: OpenAI) -> None:
    stream = sdk.completions.create(
        model=MODEL,
        prompt=FACTS,
        n=4,
        stream=True,
        extra_headers={"x-request-id": "closed"},
        **ENDLESS,
    )
    next(iter(stream))
    stream.close()
    _assert_aborted(cluster, "closed", num_choices=4)


def test_a_request_whose_client_times_out_ends_on_all_workers(
    cluster: Cluster, sdk: OpenAI
) -> None:
    impatient = sdk.with_options(timeout=0.5, default_headers={"x-request-id": "timed-out"})
    with pytest.raises(openai.APITimeoutError):
        impatient.completions.create(model=MODEL, prompt=FACTS, n=16, **ENDLESS)
    _assert_aborted(cluster, "timed-out", num_choices=16)


def _assert_aborted(cluster: Cluster, request: str, *, num_choices: int) -> None:
    """Its choices ended before their time, and no block is held any more."""

    def outcomes() -> list[str]:
        answer = cluster.get(f"/trace/{request}").json()
        return [trace["outcome"] for trace in answer.get("traces", ())]

    eventually(lambda: len(outcomes()) == num_choices, what="the traces of all choices")
    assert all(outcome.startswith("aborted") for outcome in outcomes())
    cluster.wait_idle()


def test_answers_asked_at_once_are_those_asked_one_by_one(cluster: Cluster, sdk: OpenAI) -> None:
    prompts = [f"{FACTS}{number} " for number in range(6)]

    async def at_once() -> list[str]:
        async with (
            AsyncOpenAI(base_url=str(sdk.base_url), api_key="none", timeout=60) as client,
            asyncio.TaskGroup() as tasks,
        ):
            answers = [
                tasks.create_task(
                    client.completions.create(model=MODEL, prompt=prompt, **GREEDY), name=prompt
                )
                for prompt in prompts
            ]
        return [answer.result().choices[0].text for answer in answers]

    alone = [sdk.completions.create(model=MODEL, prompt=p, **GREEDY) for p in prompts]
    assert asyncio.run(at_once()) == [answer.choices[0].text for answer in alone]


class Wick(BaseModel):
    length: Literal[1, 2, 3]
    spare: bool


class Lantern(BaseModel):
    """What a model without sense can still bring to an end."""

    kind: Literal["oil", "wax"]
    code: Annotated[int, Field(ge=0, le=999)]
    marks: Annotated[list[Annotated[str, Field(max_length=5)]], Field(max_length=3)]
    wick: Wick | None


def test_answers_are_parsed_as_the_class_that_was_asked_for(sdk: OpenAI) -> None:
    for seed in range(3):
        parsed = sdk.chat.completions.parse(
            model=MODEL, messages=HOME, response_format=Lantern, seed=seed, max_tokens=900
        )
        assert isinstance(parsed.choices[0].message.parsed, Lantern)
        with sdk.chat.completions.stream(
            model=MODEL, messages=HOME, response_format=Lantern, seed=seed, max_tokens=900
        ) as stream:
            streamed = stream.get_final_completion()
        assert streamed.choices[0].message.parsed == parsed.choices[0].message.parsed


def test_a_choice_and_a_pattern_are_kept_over_a_hand_over(sdk: OpenAI) -> None:
    wishes: list[tuple[dict[str, Any], str]] = [
        ({"structured_outputs": {"choice": ["Rome", "Oslo"]}}, "Rome|Oslo"),
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-c]{2}"}}, "[0-9]{3}-[a-c]{2}"),
        ({"ebnf": 'root ::= "<" [a-z]{2,4} ">"'}, "<[a-z]{2,4}>"),
    ]
    for form, pattern in wishes:
        said = sdk.chat.completions.create(model=MODEL, messages=HOME, seed=1, extra_body=form)
        text = sdk.completions.create(
            model=MODEL, prompt="x", seed=1, max_tokens=50, extra_body=form
        )
        assert (said.choices[0].finish_reason, text.choices[0].finish_reason) == ("stop", "stop")
        assert re.fullmatch(pattern, said.choices[0].message.content or "")
        assert re.fullmatch(pattern, text.choices[0].text)


def test_a_schema_that_cannot_be_kept_is_an_error_of_the_clients(sdk: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model=MODEL, messages=HOME, response_format=form)
    assert caught.value.param == "response_format.json_schema.schema.properties.a.uniqueItems"
