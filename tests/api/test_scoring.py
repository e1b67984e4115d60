"""The tokens of a prompt in answers, in the shapes that OpenAI's and vLLM's clients read."""

from typing import Any

import httpx
import msgspec
import pytest
from openai import AsyncOpenAI
from support.api import HI, MODEL, Bench, chat, complete, error_of

pytestmark = pytest.mark.anyio

IDS = [5, 6, 7, 8]
LARGE = {"prompt": [5] * 200, "n": 128, "echo": True, "logprobs": 20}


def logprobs_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]["logprobs"]
    assert len({len(column) for column in found.values()}) == 1
    return found


async def test_echoed_tokens_come_before_the_generated_ones(bench: Bench) -> None:
    async with bench.client() as client:
        asked = {"prompt": IDS, "echo": True, "logprobs": 2}
        answer = await complete(client, max_tokens=1, **asked)
        plain = await complete(client, max_tokens=1, logprobs=2)
    shown, own = logprobs_of(answer), logprobs_of(plain)
    assert shown["token_logprobs"] == [None, -1, -2, -3, -0.5]
    assert shown["top_logprobs"][0] is None and len(shown["top_logprobs"][1]) == 2
    text: str = answer.json()["choices"][0]["text"]
    assert shown["text_offset"] == [text.find(name, at) for name, at in _places(shown)]
    assert shown["tokens"][-1] == own["tokens"][0]
    assert answer.json()["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5,
        "prompt_tokens_details": None,
    }  # fmt: skip


def _places(shown: dict[str, Any]) -> list[tuple[str, int]]:
    return list(zip(shown["tokens"], shown["text_offset"], strict=True))


@pytest.mark.parametrize("prompt", [IDS, [5]])
async def test_without_a_token_to_generate_the_prompt_alone_is_answered(
    bench: Bench, prompt: list[int]
) -> None:
    async with bench.client() as client:
        answer = await complete(client, prompt=prompt, echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["text"] == bench.tokenizer.decode(prompt)
    assert logprobs_of(answer)["token_logprobs"] == [None, -1, -2, -3][: len(prompt)]
    assert bench.dispatcher.requests[0].sampling.max_tokens == 0


async def test_each_prompt_of_a_batch_has_its_own(bench: Bench) -> None:
    async with bench.client() as client:
        answer = await complete(
            client, prompt=[[5, 6], [7, 8, 9]], echo=True, logprobs=1, max_tokens=1
        )
    numbers = [choice["logprobs"]["token_logprobs"] for choice in answer.json()["choices"]]
    assert numbers == [[None, -1, -0.5], [None, -1, -2, -0.5]]


async def test_a_stream_echoes_text_and_numbers_once_and_in_order(bench: Bench) -> None:
    async with bench.client() as client:
        asked = {"prompt": IDS, "echo": True, "logprobs": 2, "max_tokens": 2}
        whole = (await complete(client, **asked)).json()["choices"][0]
        streamed = await complete(client, stream=True, **asked)
    lines = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: {")]
    chunks = [msgspec.json.decode(line)["choices"][0] for line in lines]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for column, values in whole["logprobs"].items():
        shown = [chunk["logprobs"][column] for chunk in chunks if chunk["logprobs"]]
        assert [value for part in shown for value in part] == values


async def test_vllms_list_has_every_token_with_its_rank_by_id(bench: Bench) -> None:
    async with bench.client() as client:
        answer = await complete(client, prompt=IDS, prompt_logprobs=1, max_tokens=1)
    (choice,) = answer.json()["choices"]
    listed = choice["prompt_logprobs"]
    assert listed[0] is None and len(listed) == len(IDS)
    assert list(listed[1]) == ["6", "5"], "its own token, then the likeliest"
    assert (listed[1]["6"]["logprob"], listed[1]["6"]["rank"]) == (-1, 2)
    assert (listed[1]["5"]["logprob"], listed[1]["5"]["rank"]) == (-0.5, 1)
    name = bench.tokenizer.token_text(6)
    assert listed[1]["6"]["decoded_token"] == name
    assert choice["logprobs"] is None


async def test_of_both_each_has_as_many_alternatives_as_it_asks_for(bench: Bench) -> None:
    async with bench.client() as client:
        both = {"echo": True, "logprobs": 3, "prompt_logprobs": 1}
        answer = await complete(client, prompt=IDS, max_tokens=0, **both)
    (choice,) = answer.json()["choices"]
    assert [len(one) for one in choice["logprobs"]["top_logprobs"][1:]] == [3, 3, 4]
    assert [len(one) for one in choice["prompt_logprobs"][1:]] == [2, 2, 2]


async def test_a_chat_lists_its_prompt_once_whatever_its_choices(bench: Bench) -> None:
    async with bench.client() as client:
        answer = (await chat(client, prompt_logprobs=0, n=2, max_tokens=1)).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["prompt_logprobs"][0] is None
    assert "prompt_logprobs" not in answer["choices"][0]
    assert [bool(asked.reading) for asked in bench.dispatcher.requests] == [True, False]


async def test_nothing_is_listed_that_was_not_asked_for(bench: Bench) -> None:
    async with bench.client() as client:
        assert "prompt_logprobs" not in (await chat(client)).json()
        assert "prompt_logprobs" not in (await complete(client)).json()["choices"][0]
        await complete(client, echo=True)
        await complete(client, logprobs=1)
    assert not any(asked.reading for asked in bench.dispatcher.requests)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"max_tokens": 0, "min_tokens": 1}, "min_tokens"),
        (LARGE | {"prompt_logprobs": 20}, "prompt_logprobs"),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_name(
    bench: Bench, fields: dict[str, Any], param: str
) -> None:
    async with bench.client() as client:
        refused = await complete(client, **{"max_tokens": 1} | fields)
    assert refused.status_code == 400
    assert error_of(refused)["param"] == param
    assert not bench.dispatcher.requests


async def test_a_prompt_as_long_as_the_context_can_be_scored(bench: Bench) -> None:
    bench.models.context = len(IDS)
    async with bench.client() as client:
        asked = {"prompt": IDS, "echo": True, "logprobs": 0}
        assert (await complete(client, max_tokens=0, **asked)).status_code == 200
        assert (await complete(client, max_tokens=1, **asked)).status_code == 400


async def test_the_sdk_reads_echoed_numbers(bench: Bench) -> None:
    async with (
        bench.serving() as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0) as sdk,
    ):
        answer = await sdk.completions.create(
            model=MODEL, prompt=IDS, echo=True, logprobs=1, max_tokens=0
        )
        listed = await sdk.chat.completions.create(
            model=MODEL,
            messages=HI,  # type: ignore[arg-type]
            extra_body={"prompt_logprobs": 1},
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[1:] == [-1, -2, -3]
    assert listed.model_extra is not None and listed.model_extra["prompt_logprobs"][1]
