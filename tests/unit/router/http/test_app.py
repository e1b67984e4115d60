import asyncio
from datetime import datetime
from pathlib import Path

import httpx
import msgspec
import pytest
from support.api import HI, MODEL, Bench, chat, complete, error_of, make_bench
from support.eventually import soon

from protocol.messages import Sampling
from protocol.process.version import baton_version

pytestmark = pytest.mark.anyio


async def test_a_chat_answer_has_exactly_openais_shape(client: httpx.AsyncClient) -> None:
    response = await chat(client)
    answer = response.json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    usage = answer.pop("usage")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert answer == {
        "object": "chat.completion",
        "model": MODEL,
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
    }


async def test_a_completion_answer_has_exactly_openais_shape(client: httpx.AsyncClient) -> None:
    answer = (await complete(client, max_tokens=2)).json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason", "stop_reason"}
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 2)


async def test_the_router_fills_in_what_the_client_left_open(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    await chat(client)
    await complete(client)
    chatted, completed = bench.dispatcher.requests
    assert chatted.sampling.max_tokens == 256 - len(chatted.token_ids)
    assert completed.sampling.max_tokens == 16
    assert chatted.sampling.seed != completed.sampling.seed


async def test_every_choice_of_every_prompt_is_a_request_of_its_own(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    response = await client.post(
        "/v1/completions",
        json={"model": MODEL, "prompt": ["a", "b b b"], "n": 2, "seed": 2**63 - 1},
        headers={"x-request-id": "mine"},
    )
    requests = sorted(bench.dispatcher.requests, key=lambda request: request.id)
    assert [request.id for request in requests] == ["mine.0", "mine.1", "mine.2", "mine.3"]
    assert [request.sampling.seed for request in requests] == [2**63 - 1, 0, 1, 2]
    assert requests[0].token_ids == requests[1].token_ids != requests[2].token_ids
    answer = response.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    prompts = len(requests[0].token_ids) + len(requests[2].token_ids)
    assert answer["usage"]["prompt_tokens"] == prompts


async def test_cached_tokens_count_each_prompt_once(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.cached_tokens = 5
    answer = (await complete(client, prompt=["a", "b"], n=3)).json()
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 10}


async def test_token_ids_are_prompts_too(bench: Bench, client: httpx.AsyncClient) -> None:
    await complete(client, prompt=[5, 6, 7])
    assert bench.dispatcher.requests[0].token_ids == (5, 6, 7)


async def test_echo_shows_the_prompt_first(client: httpx.AsyncClient) -> None:
    assert (await complete(client, prompt="Say: ", echo=True)).json()["choices"][0]["text"] == (
        "Say: Hello there."
    )


async def test_extras_reach_the_workers(bench: Bench, client: httpx.AsyncClient) -> None:
    extras = {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True}
    more = {"min_tokens": 2, "stop_token_ids": [9], "include_stop_str_in_output": True}
    await chat(
        client, **extras, **more, skip_special_tokens=False, cache_salt="s", stop=["x"], seed=-1,
        logit_bias={"7": 5}, max_tokens=4, temperature=0, presence_penalty=1, frequency_penalty=-1,
    )  # fmt: skip
    (request,) = bench.dispatcher.requests
    sampling = msgspec.structs.asdict(request.sampling)
    assert request.salt == "s"
    assert sampling == msgspec.structs.asdict(Sampling(seed=0, max_tokens=1)) | {
        "seed": 2**63 - 1,
        "max_tokens": 4,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "logit_bias": ((7, 5.0),),
        "num_logprobs": None,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop": ("x",),
        "stop_token_ids": (9,),
        "include_stop": True,
        "skip_special_tokens": False,
    }


async def test_chat_logprobs_have_exactly_openais_shape(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, logprobs=True, top_logprobs=2, max_tokens=1)).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    (entry,) = logprobs["content"]
    assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
    assert bytes(entry["bytes"]).decode() == entry["token"] != ""
    assert [set(other) for other in entry["top_logprobs"]] == [{"token", "logprob", "bytes"}] * 2


async def test_chat_logprobs_without_alternatives(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, logprobs=True, max_tokens=1)).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_completion_logprobs_have_exactly_openais_shape(client: httpx.AsyncClient) -> None:
    answer = (await complete(client, logprobs=1, max_tokens=3)).json()
    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert "".join(logprobs["tokens"]) == choice["text"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    assert [set(top) for top in logprobs["top_logprobs"]] == [{t} for t in logprobs["tokens"]]


async def test_completion_logprobs_write_out_the_bytes_of_a_part_of_a_character(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.reply = "🙉"
    answer = (await complete(client, logprobs=0)).json()
    tokens = answer["choices"][0]["logprobs"]["tokens"]
    assert answer["choices"][0]["text"] == "🙉"
    assert any(token.startswith("bytes:\\x") for token in tokens)


async def test_the_route_is_a_header(client: httpx.AsyncClient) -> None:
    for stream in (False, True):
        response = await chat(client, stream=stream)
        assert response.headers["x-baton-route"] == "split; warm prefix"


async def test_threads_that_tokenise_do_not_look_at_the_workers(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    """Workers come and go on the event loop meanwhile; the fake cluster refuses other threads."""
    bench.models.context = 100
    for response in (
        await chat(client, max_tokens=2),
        await chat(client),
        await complete(client, max_tokens=2),
        await complete(client),
        await client.post("/tokenize", json={"prompt": "hi"}),
    ):
        assert response.status_code == 200
    assert response.json()["max_model_len"] == 100


async def test_models_are_listed(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (MODEL, "model", 256)
    assert (await client.get(f"/v1/models/{MODEL}")).json() == model
    assert model["default_sampling_params"]["temperature"] == 1.0
    missing = await client.get("/v1/models/org/other")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "model_not_found")


async def test_models_are_listed_as_anthropics_clients_read_them(
    client: httpx.AsyncClient,
) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    listed = (await client.get("/v1/models", headers=headers)).json()
    (model,) = listed.pop("data")
    assert listed == {"has_more": False, "first_id": MODEL, "last_id": MODEL}
    assert datetime.fromisoformat(model.pop("created_at")).tzinfo is not None
    assert model == {
        "type": "model",
        "id": MODEL,
        "display_name": MODEL,
        "lifecycle": "active",
        "max_input_tokens": 255,
        "max_tokens": 255,
    }


async def test_small_endpoints_say_what_they_are_asked(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    assert (await client.get("/version")).json() == {"version": baton_version()}
    assert (await client.post("/ping")).json() == (await client.get("/health")).json()
    bench.dispatcher.hold_at = 0
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(complete(client, n=3), name="asking")
        await soon(lambda: bench.dispatcher.num_active == 3, what="active")
        assert (await client.get("/load")).json() == {"server_load": 3}
        bench.dispatcher.release.set()
        await asking
    assert (await client.get("/load")).json() == {"server_load": 0}


async def test_the_tokenizer_is_described_for_whoever_makes_prompts(bench: Bench) -> None:
    described = {"eos_token": "</s>", "chat_template": "{{ messages }}"}
    async with bench.client(tokenizer_description=described) as client:
        assert (await client.get("/tokenizer_info")).json() == described


async def test_tokenize_and_detokenize_are_inverse(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/tokenize", json={"prompt": "héllo <|im_end|>"})).json()
    assert answer["count"] == len(answer["tokens"]) > 0
    back = await client.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": "héllo <|im_end|>"}


async def test_tokenize_shows_a_chat_as_the_model_sees_it(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    await chat(client)
    answer = (await client.post("/tokenize", json={"model": MODEL, "messages": HI})).json()
    assert tuple(answer["tokens"]) == bench.dispatcher.requests[0].token_ids


async def test_template_variables_reach_the_template(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "t", chat_template="{{ mood }}{{ self }}{{ messages | length }}")
    async with bench.client() as client:
        variables = {"mood": "calm", "self": "x", "context": "y"}
        assert (await chat(client, chat_template_kwargs=variables)).status_code == 200
    (request,) = bench.dispatcher.requests
    assert bench.tokenizer.decode(request.token_ids).startswith("calm")


async def test_tokenize_gives_the_template_what_a_chat_would(tmp_path: Path) -> None:
    template = (
        "{{ mood }}{% for m in messages %}{{ m.content }}{{ m.reasoning_content }}{% endfor %}"
    )
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    asked = {
        "messages": [{"role": "assistant", "content": parts, "reasoning_content": "why"}],
        "chat_template_kwargs": {"mood": "calm"},
    }
    bench = make_bench(tmp_path, chat_template=template)
    async with bench.client() as client:
        answer = (await client.post("/tokenize", json=asked)).json()
        await chat(client, **asked)
    assert tuple(answer["tokens"]) == bench.dispatcher.requests[0].token_ids
    assert bench.tokenizer.decode(answer["tokens"]) == "calmone\ntwowhy"
