"""`/v1/embeddings` as the openai SDK and its likes ask for it."""

import base64
from array import array
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from support.api import MODEL, Bench, error_of

from protocol.readings import PoolPrompt
from protocol.text.pooling_config import PoolingConfig
from router.openai.embeddings import MAX_INPUTS

pytestmark = pytest.mark.anyio

UNIT = pytest.approx([0.6, 0.8, 0.0])
"""The fake vector, of length 1."""
MATRYOSHKA = PoolingConfig(is_matryoshka=True)


async def embed(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/embeddings", json={"model": MODEL, "input": "hi"} | fields)


async def test_the_sdk_gets_a_vector_for_each_input_in_order(bench: Bench) -> None:
    async with (
        bench.serving() as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0) as sdk,
    ):
        answer = await sdk.embeddings.create(model=MODEL, input=["hi", "there", "you"])
        plain = await sdk.embeddings.create(model=MODEL, input="hi", encoding_format="float")
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert all(one.embedding == UNIT for one in (*answer.data, *plain.data))
    asked = bench.dispatcher.requests
    assert answer.usage.prompt_tokens == sum(len(one.token_ids) for one in asked[:3])
    assert answer.usage.total_tokens == answer.usage.prompt_tokens
    assert all(one.sampling.max_tokens == 0 for one in asked)
    assert all(one.reading == PoolPrompt(kind="last") for one in asked)


async def test_base64_is_of_little_endian_float32(bench: Bench) -> None:
    async with bench.client() as client:
        answer = (await embed(client, encoding_format="base64")).json()
    raw = base64.b64decode(answer["data"][0]["embedding"])
    assert array("f", raw).tolist() == UNIT
    assert (answer["object"], answer["data"][0]["object"]) == ("list", "embedding")


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ([5, 6], [(5, 6)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
        ("hi", None),
        (["hi", "you"], None),
    ],
)
async def test_inputs_are_texts_or_token_ids(
    bench: Bench, given: object, prompts: list[tuple[int, ...]] | None
) -> None:
    encode = bench.tokenizer.encode
    texts = [given] if isinstance(given, str) else given
    assert isinstance(texts, list)
    expected = prompts or [tuple(encode(text)) for text in texts]
    async with bench.client() as client:
        assert (await embed(client, input=given)).status_code == 200
    assert [one.token_ids for one in bench.dispatcher.requests] == expected


async def test_dimensions_are_cut_and_brought_to_length_one_where_the_model_allows_it(
    bench: Bench,
) -> None:
    async with bench.client(pooling=MATRYOSHKA) as client:
        cut = (await embed(client, dimensions=1)).json()
        refused = await embed(client, dimensions=4)
    assert cut["data"][0]["embedding"] == pytest.approx([1.0])
    assert (refused.status_code, error_of(refused)["param"]) == (400, "dimensions")
    async with bench.client() as client:
        refused = await embed(client, dimensions=1)
    assert error_of(refused)["code"] == "unsupported_parameter"
    some = PoolingConfig(is_matryoshka=True, dimensions=frozenset({2}))
    async with bench.client(pooling=some) as client:
        assert (await embed(client, dimensions=1)).status_code == 400
        assert (await embed(client, dimensions=2)).status_code == 200


async def test_the_checkpoint_says_how_a_text_is_pooled(bench: Bench) -> None:
    async with bench.client(pooling=PoolingConfig(kind="mean", is_normalised=False)) as client:
        answer = (await embed(client)).json()
    assert answer["data"][0]["embedding"] == [3.0, 4.0, 0.0]
    assert bench.dispatcher.requests[0].reading == PoolPrompt(kind="mean")
    async with bench.client(pooling=PoolingConfig(refusal="pooling max_tokens")) as client:
        refused = await embed(client)
    assert refused.status_code == 400 and "pooling max_tokens" in refused.text


@pytest.mark.parametrize("vector", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
async def test_a_vector_without_a_direction_is_an_error_and_no_number(
    bench: Bench, vector: list[float]
) -> None:
    bench.dispatcher.vector = vector
    async with bench.client() as client:
        assert (await embed(client)).status_code == 500


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["hi", ""]}, "input[1]"),
        ({"input": [[5], []]}, "input[1]"),
        ({"input": [5, 10**6]}, "input[1]"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": [7] * 600}, "input"),
        ({"input": [{"text": "hi"}]}, "input[0]"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"stream": True}, "stream"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    bench: Bench, fields: dict[str, Any], param: str
) -> None:
    bench.models.context = 512
    async with bench.client() as client:
        refused = await embed(client, **fields)
    assert refused.status_code == 400
    assert error_of(refused)["param"] == param


async def test_as_many_inputs_as_openai_takes_are_computed_a_few_at_a_time(bench: Bench) -> None:
    async with bench.client(max_choices=8, max_in_flight=8) as client:
        answer = await embed(client, input=[[5]] * 300)
    assert [one["index"] for one in answer.json()["data"]] == list(range(300))
    assert bench.dispatcher.most_active <= 8
