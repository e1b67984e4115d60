"""Two models behind one app: each request by one of them, in every API."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.api import Bench, error_of, events_of
from support.fake_models import REVISION
from support.two_models import ONE, OTHER, OTHER_REVISION, add_text, two_models

from router.requests.ending import EndWell
from router.requests.events import GenerationRequest

pytestmark = pytest.mark.anyio
HI = [{"role": "user", "content": "hi"}]
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "[hi]"},
    "/v1/messages": {"messages": HI, "max_tokens": 20},
    "/v1/responses": {"input": "hi"},
    "/v1/embeddings": {"input": "[hi]"},
}
EXACTLY = {ONE: f"{ONE}@{REVISION}", OTHER: f"{OTHER}@{OTHER_REVISION}"}
SHOWN = {ONE: "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", OTHER: "[hi]"}


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    async with bench.client() as client:
        yield client


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return two_models(tmp_path)


def prompt_of(bench: Bench, request: GenerationRequest) -> str:
    """By the tokens of the model that it is for."""
    (text,) = (one for one in bench.models.texts if one.version == request.version)
    return text.tokenizer.decode(request.token_ids, skip_special_tokens=False)


@pytest.mark.parametrize("model", [ONE, OTHER])
@pytest.mark.parametrize("path", GENERATING)
async def test_every_api_answers_by_the_text_of_the_model_asked_for(
    bench: Bench, client: httpx.AsyncClient, path: str, model: str
) -> None:
    answer = await client.post(path, json={"model": model} | GENERATING[path])
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    assert answer.headers["x-baton-model"] == EXACTLY[model]
    (request,) = bench.dispatcher.requests
    assert request.version is not None and request.version.model == model
    is_chat = path not in ("/v1/completions", "/v1/embeddings")
    assert prompt_of(bench, request) == (SHOWN[model] if is_chat else "[hi]")


@pytest.mark.parametrize("model", [ONE, OTHER])
async def test_streams_and_log_probabilities_are_in_the_models_tokens(
    bench: Bench, client: httpx.AsyncClient, model: str
) -> None:
    asked = {"model": model, "messages": HI, "stream": True, "logprobs": True}
    answer = await client.post("/v1/chat/completions", json=asked)
    *chunks, _ = events_of(answer)
    assert {chunk["model"] for chunk in chunks} == {model}
    tokens = [
        one["token"]
        for c in chunks
        for one in (c["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    (text,) = (one for one in bench.models.texts if one.version.model == model)
    ids = [*text.tokenizer.encode(bench.dispatcher.reply), text.tokenizer.eos_token_ids[0]]
    assert tokens[: len(ids) - 1] == [text.tokenizer.token_text(one) for one in ids[:-1]]


@pytest.mark.parametrize(("model", "temperature"), [(ONE, 1.0), (OTHER, 0.25)])
async def test_defaults_are_the_models(
    bench: Bench, client: httpx.AsyncClient, model: str, temperature: float
) -> None:
    await client.post("/v1/chat/completions", json={"model": model, "messages": HI})
    assert bench.dispatcher.requests[0].sampling.temperature == temperature


async def test_tokens_are_counted_and_shown_by_the_model_asked_for(
    client: httpx.AsyncClient,
) -> None:
    counts = {}
    for model in (ONE, OTHER):
        told = await client.post("/tokenize", json={"model": model, "messages": HI})
        back = await client.post(
            "/detokenize", json={"model": model, "tokens": told.json()["tokens"]}
        )
        assert back.json() == {"prompt": SHOWN[model]}
        counted = await client.post(
            "/v1/messages/count_tokens", json={"model": model, "messages": HI}
        )
        assert counted.json() == {"input_tokens": told.json()["count"]}
        for answer in (told, back, counted):
            assert answer.headers["x-baton-model"] == EXACTLY[model]
        counts[model] = told.json()["max_model_len"], told.json()["count"]
    assert counts[ONE][0] == 512 and counts[OTHER][0] == 256 and len(set(counts.values())) == 2


async def test_a_tokenizer_is_described_by_the_models_name(client: httpx.AsyncClient) -> None:
    answer = await client.get("/tokenizer_info", params={"model": OTHER})
    assert answer.json() == {"of": OTHER} and answer.headers["x-baton-model"] == EXACTLY[OTHER]
    assert (await client.get("/tokenizer_info", params={"model": "no"})).status_code == 404
    assert (await client.get("/tokenizer_info")).status_code == 400


async def test_both_are_listed_and_each_is_shown(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert [one["id"] for one in listed] == [OTHER, ONE]
    assert [one["max_model_len"] for one in listed] == [256, 512]
    assert listed[0]["default_sampling_params"]["temperature"] == 0.25
    assert [one["baton"] for one in listed] == [
        {"revisions": [OTHER_REVISION]}, {"revisions": [REVISION]},
    ]  # fmt: skip
    for one in listed:
        assert (await client.get(f"/v1/models/{one['id']}")).json() == one
    theirs = {"anthropic-version": "2023-06-01"}
    shown = (await client.get("/v1/models", headers=theirs)).json()
    assert (shown["first_id"], shown["last_id"]) == (OTHER, ONE)
    assert [one["max_input_tokens"] for one in shown["data"]] == [255, 511]


async def test_the_document_names_what_is_served_now(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    def names(document: dict[str, Any]) -> object:
        return document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"]

    assert names((await client.get("/openapi.json")).json()) == [OTHER, ONE]
    bench.models.aliases["prod"] = {ONE: 1}
    assert names((await client.get("/openapi.json")).json()) == [OTHER, ONE, "prod"]


@pytest.mark.parametrize("path", [*GENERATING, "/tokenize", "/v1/messages/count_tokens"])
async def test_another_name_is_404_that_says_which_there_are(
    bench: Bench, client: httpx.AsyncClient, path: str
) -> None:
    asked = GENERATING.get(path, {"messages": HI})
    answer = await client.post(path, json={"model": "gpt-9"} | asked)
    assert answer.status_code == 404
    error = answer.json()["error"]
    named = f"The model `gpt-9` does not exist here; `{OTHER}`, `{ONE}` do."
    assert error["message"] == named
    assert "x-baton-model" not in answer.headers
    assert (await client.get("/v1/models/gpt-9")).status_code == 404
    assert not bench.dispatcher.requests


@pytest.mark.parametrize("unnamed", [{}, {"model": None}, {"model": ""}])
async def test_no_name_is_the_only_model_and_of_several_a_mistake(
    bench: Bench, client: httpx.AsyncClient, unnamed: dict[str, Any]
) -> None:
    for path, fields in GENERATING.items():
        answer = await client.post(path, json=fields | unnamed)
        assert answer.status_code == 400 and "model: required" in answer.text
    assert error_of(answer)["param"] == "model"
    del bench.models.texts[0]
    for path, fields in GENERATING.items():
        answer = await client.post(path, json=fields | unnamed)
        assert answer.status_code == 200 and answer.json()["model"] == OTHER


async def test_a_revision_is_asked_for_by_name_and_by_a_beginning(
    bench: Bench, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    """What `x-baton-model` says may be asked for in turn."""
    add_text(bench, tmp_path / "new", model=ONE, revision="abcdef0123")
    for name in (f"{ONE}@abcdef0123", f"{ONE}@abcdef"):
        answer = await client.post("/v1/chat/completions", json={"model": name, "messages": HI})
        assert answer.json()["model"] == ONE
        assert answer.headers["x-baton-model"] == f"{ONE}@abcdef0123"
        assert prompt_of(bench, bench.dispatcher.requests[-1]) == SHOWN[OTHER]
    shown = (await client.get(f"/v1/models/{ONE}@{REVISION}")).json()
    assert (shown["id"], shown["max_model_len"]) == (f"{ONE}@{REVISION}", 512)
    assert shown["baton"] == {"revisions": [REVISION]}
    (both,) = (one for one in (await client.get("/v1/models")).json()["data"] if one["id"] == ONE)
    assert both["baton"] == {"revisions": [REVISION, "abcdef0123"]}
    assert (await client.get(f"/v1/models/{ONE}@123456")).status_code == 404


async def test_an_alias_is_listed_as_one_and_answers_tell_what_it_stands_for(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.models.aliases["prod"] = {OTHER: 1}
    answer = await client.post("/v1/chat/completions", json={"model": "prod", "messages": HI})
    assert answer.json()["model"] == OTHER
    assert answer.headers["x-baton-model"] == EXACTLY[OTHER]
    alias = (await client.get("/v1/models")).json()["data"][-1]
    assert alias["id"] == "prod" and alias["baton"] == {"alias_for": {OTHER: 1}}
    assert (await client.get("/v1/models/prod")).json() == alias


@pytest.mark.parametrize("path", [*GENERATING, "/tokenize"])
async def test_a_session_stays_with_what_an_alias_gave_it(
    bench: Bench, client: httpx.AsyncClient, path: str
) -> None:
    bench.models.aliases["prod"] = {ONE: 1, OTHER: 1}
    asked = {"model": "prod"} | GENERATING.get(path, {"messages": HI})

    async def answered(**headers: str) -> str:
        answer = await client.post(path, json=asked, headers=headers)
        assert answer.status_code == 200
        return answer.headers["x-baton-model"]

    of_session = {
        f"s{n}": {await answered(**{"x-session-id": f"s{n}"}) for _ in range(3)} for n in range(8)
    }
    assert all(len(names) == 1 for names in of_session.values())
    assert len(set.union(*of_session.values())) == 2
    again = {await answered(**{"x-request-id": "r"}) for _ in range(3)}
    assert len(again) == 1
    assert len({await answered(**{"x-request-id": f"r{n}"}) for n in range(12)}) == 2


async def test_a_name_that_no_header_may_have_is_written_as_in_an_url(
    bench: Bench, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    add_text(bench, tmp_path / "odd", model="café\n", revision="0" * 8)
    answer = await client.post("/v1/chat/completions", json={"model": "café\n", "messages": HI})
    assert answer.headers["x-baton-model"] == "caf%C3%A9%0A@00000000"


async def test_whether_a_request_has_ended_is_said_by_its_own_text(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    """The same tokens are another word in the other model."""
    for model in (ONE, OTHER):
        asked = {"model": model, "messages": HI, "stop": ["Hello"]}
        await client.post("/v1/chat/completions", json=asked)
    said = [text.tokenizer.encode("Hello") for text in bench.models.texts]
    for request, own, others in zip(bench.dispatcher.requests, said, said[::-1], strict=True):
        assert request.already_ended(request.sampling, own) == EndWell("stop", "Hello")
        assert request.already_ended(request.sampling, others) is None
