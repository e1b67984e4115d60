import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from support.api import MODEL, Bench, make_bench
from support.fake_dispatcher import BEFORE_PLACED

from protocol.errors import BatonError, CapacityError
from protocol.ids import Epoch, RouterId, WorkerId
from protocol.messages import Blocks, Speeds
from router.cluster_view import ClusterView, WorkerView
from router.events import NoWorkers, RequestFailed, TooLong

pytestmark = pytest.mark.anyio
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    async with bench.client() as client:
        yield client


async def chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": HI} | fields
    return await client.post("/v1/chat/completions", json=body)


async def complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"model": MODEL, "prompt": "hi"} | fields)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


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
            }
        ],
    }


async def test_a_completion_answer_has_exactly_openais_shape(client: httpx.AsyncClient) -> None:
    answer = (await complete(client, max_tokens=2)).json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
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
    assert sampling == {
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


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "gpt-4"}, 404, "model", "model_not_found"),
        ({"max_tokens": 300}, 400, "messages", "context_length_exceeded"),
        ({"n": 129}, 400, "n", None),
        ({"stop_token_ids": [100_000]}, 400, "stop_token_ids[0]", None),
        ({"logit_bias": {"100000": 1}}, 400, "logit_bias", None),
        ({"min_tokens": 5, "max_tokens": 4}, 400, "min_tokens", None),
        ({"chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs", None),
        ({"tools": [1]}, 400, "tools", "unsupported_parameter"),
        ({"nonsense": 1}, 400, "nonsense", "unknown_parameter"),
        ({"temperature": "hot"}, 400, "temperature", None),
        ({"messages": [{"role": "user", "content": "x " * 300}]}, 400, "messages", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_chat_request_reaches_no_worker(
    bench: Bench,
    client: httpx.AsyncClient,
    fields: dict[str, Any],
    status: int,
    param: str,
    code: str | None,
    stream: bool,
) -> None:
    response = await chat(client, stream=stream, **fields)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (status, param)
    assert code is None or error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert bench.dispatcher.requests == []


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([5, -1], "prompt[1]"),
        ([[5], [6, 10**9]], "prompt[1][1]"),
        (["a", ""], "prompt[1]"),
    ],
)
async def test_a_bad_prompt_reaches_no_worker(
    bench: Bench, client: httpx.AsyncClient, prompt: object, param: str
) -> None:
    response = await complete(client, prompt=prompt)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert bench.dispatcher.requests == []


async def test_a_prompt_over_the_context_is_told_the_numbers(client: httpx.AsyncClient) -> None:
    message = error_of(await complete(client, prompt=[5] * 250, max_tokens=10))["message"]
    assert all(number in message for number in ("256", "250", "10", "260"))


async def test_the_whole_context_may_be_used(client: httpx.AsyncClient) -> None:
    response = await complete(client, prompt=[5] * 250, max_tokens=6)
    assert response.status_code == 200


async def test_a_prompt_that_leaves_little_room_gets_what_is_left(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    await complete(client, prompt=[5] * 250)
    assert bench.dispatcher.requests[0].sampling.max_tokens == 6


async def test_the_context_is_that_of_the_workers_if_it_is_shorter(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.cluster.context = 100
    assert (await complete(client, prompt=[5] * 101)).status_code == 400


async def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    async with make_bench(tmp_path / "plain", chat_template=None).client() as client:
        response = await chat(client)
        assert response.status_code == 400
        assert "no chat template" in error_of(response)["message"]
        assert (await complete(client)).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b"\xff\xfe"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_malformed_json_is_a_clear_error(
    client: httpx.AsyncClient, path: str, body: bytes
) -> None:
    response = await client.post(path, content=body)
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_json")


async def chunks(num: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(num):
        yield b" " * size


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
async def test_an_oversized_body_is_refused_announced_or_not(bench: Bench, path: str) -> None:
    async with bench.client(max_body_bytes=1000) as client:
        for content in (b" " * 1001, chunks(11, 100)):
            response = await client.post(path, content=content)
            assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (CapacityError("full", retry_after_s=2.5), 429, "overloaded", "3"),
        (NoWorkers("no decode worker"), 503, "no_workers", "1"),
        (TooLong("300 of 256"), 400, "context_length_exceeded", None),
        (RequestFailed("late", code="deadline"), 504, "deadline_exceeded", None),
        (RequestFailed("lost", code="source_lost", retryable=True), 503, "unavailable", "1"),
        (RequestFailed("broken", code="internal"), 500, "internal_error", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("index", [BEFORE_PLACED, 0])
async def test_a_failure_before_the_first_token_is_a_plain_status(
    bench: Bench,
    client: httpx.AsyncClient,
    failure: BatonError,
    status: int,
    code: str,
    retry_after: str | None,
    stream: bool,
    index: int,
) -> None:
    bench.dispatcher.failures[index] = failure
    response = await chat(client, stream=stream)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert response.headers.get("retry-after") == retry_after


async def test_a_failure_of_one_choice_ends_the_others(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.failures[2] = NoWorkers("gone")
    response = await chat(client, n=3)
    assert response.status_code == 503
    assert bench.dispatcher.num_active == 0


async def test_a_mistake_of_ours_is_a_500_in_openais_shape(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.failures[1] = ZeroDivisionError("secret")
    response = await chat(client)
    assert (response.status_code, error_of(response)["message"]) == (500, "internal error")


async def test_a_full_router_refuses_with_retry_after(bench: Bench) -> None:
    async with bench.client(max_in_flight=2, retry_after_s=7.0) as client:
        response = await chat(client, n=3)
        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
        assert error_of(response)["type"] == "rate_limit_error"
        assert (await chat(client, n=2)).status_code == 200


async def test_the_request_id_is_echoed_and_names_the_answer(client: httpx.AsyncClient) -> None:
    headers = {"x-request-id": "my/id-1"}
    body = {"model": MODEL, "messages": HI}
    response = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert response.headers["x-request-id"] == "my/id-1"
    assert response.json()["id"] == "chatcmpl-my/id-1"
    trace = (await client.get("/trace/my/id-1")).json()
    assert trace["traces"][0]["outcome"] == "stop"


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "\x01", "é"])
async def test_an_odd_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    raw = [(b"x-request-id", given.encode())]
    ids = {(await client.get("/nowhere", headers=raw)).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2 and all(len(one) == 32 for one in ids)


async def test_the_route_is_a_header(client: httpx.AsyncClient) -> None:
    for stream in (False, True):
        response = await chat(client, stream=stream)
        assert response.headers["x-baton-route"] == "split; warm prefix"


async def test_models_are_listed(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (MODEL, "model", 256)
    assert (await client.get(f"/v1/models/{MODEL}")).json() == model
    missing = await client.get("/v1/models/org/other")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "model_not_found")


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


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": HI}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "extra": 1}, "extra"),
        ("/tokenize", {"prompt": "x", "model": "other"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens[0]"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
async def test_bad_token_requests_are_named_by_field(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code in (400, 404)
    assert error_of(response)["param"] == param


async def test_ready_says_why_not(bench: Bench, client: httpx.AsyncClient) -> None:
    assert (await client.get("/ready")).json() == {"ready": True}
    bench.cluster.reason = "no decode worker"
    response = await client.get("/ready")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {"ready": False, "reason": "no decode worker"}
    assert (await client.get("/health")).status_code == 200


async def test_cluster_shows_every_worker(bench: Bench, client: httpx.AsyncClient) -> None:
    blocks = {"total": 8, "free": 6, "cached": 2, "leased": 1}
    speeds = {"prefill_tokens_per_s": 1.5, "decode_step_s": 0.5, "transfer_bytes_per_s": 2.5}
    worker: dict[str, Any] = {"id": "decode-0", "role": "decode", "pid": 7, "host": "h"}
    worker |= {"epoch": 2**62, "state": "ready", "transport": "shm", "running": 1, "waiting": 0}
    bench.cluster.shown = ClusterView(
        router=RouterId("router-0"),
        index="exact",
        redis="connected",
        workers=(
            WorkerView(
                **worker
                | {"id": WorkerId("decode-0"), "epoch": Epoch(2**62)}
                | {"blocks": Blocks(**blocks), "speeds": Speeds(**speeds)}
            ),
        ),
    )
    assert (await client.get("/cluster")).json() == {
        "router": "router-0",
        "index": "exact",
        "redis": "connected",
        "workers": [worker | {"blocks": blocks, "speeds": speeds}],
    }


async def test_metrics_count_answers_by_path_and_status(client: httpx.AsyncClient) -> None:
    await chat(client)
    await chat(client, nonsense=1)
    await client.get("/no/such/path")
    text = (await client.get("/metrics")).text
    for path, status in (
        ("/v1/chat/completions", 200),
        ("/v1/chat/completions", 400),
        ("other", 404),
    ):
        assert f'baton_requests_total{{path="{path}",status="{status}"}} 1.0' in text


async def test_unknown_paths_and_methods_are_errors_in_openais_shape(
    client: httpx.AsyncClient,
) -> None:
    for response, status in (
        (await client.get("/nowhere"), 404),
        (await client.get("/v1/completions"), 405),
        (await client.get("/trace/none"), 404),
    ):
        assert response.status_code == status
        error_of(response)


@pytest.mark.parametrize("path", ["/v1/models", "/cluster", "/trace/x", "/tokenize", "/docs"])
async def test_a_key_is_asked_for(bench: Bench, path: str) -> None:
    async with bench.client(api_keys=("right", "other")) as client:
        for given in (None, "Bearer wrong", "Bearer ", "right", "Basic right", "Bearer é"):
            headers = [] if given is None else [(b"authorization", given.encode())]
            response = await client.get(path, headers=headers)
            assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")


async def test_any_of_the_keys_opens(bench: Bench) -> None:
    async with bench.client(api_keys=("right", "other")) as client:
        for key in ("right", "other"):
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
async def test_probes_and_scrapers_need_no_key(bench: Bench, path: str) -> None:
    async with bench.client(api_keys=("right",)) as client:
        assert (await client.get(path)).status_code == 200


def test_the_router_is_free_of_torch_and_small() -> None:
    code = (
        "import json, resource, sys, router.app\n"
        "heavy = [m for m in ('torch', 'transformers', 'triton', 'openai') if m in sys.modules]\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(json.dumps({'heavy': heavy, 'peak_mb': peak / 1024}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60, text=True
    )
    seen = json.loads(done.stdout)
    assert seen["heavy"] == []
    assert seen["peak_mb"] < 150
