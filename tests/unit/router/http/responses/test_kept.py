"""Against a real redis-server."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.api import Bench, error_of, make_bench
from support.redis_server import RedisServer, redis_server
from support.responses import TEMPLATE, WEATHER, events_of, prompt_of, respond
from support.two_models import OTHER, two_models

from protocol.store.address import RedisAddress
from protocol.store.responses import ResponseStore
from router.runtime import KeptResponses
from router.tenants.api_key import ApiKey, key_digest
from router.tenants.key_ring import KeyRing

pytestmark = pytest.mark.anyio
CALL = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=2048)


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(redis.address, ttl_s=60, max_bytes=lambda: 1 << 20, deadline_s=2.0)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def client(bench: Bench, store: ResponseStore) -> AsyncIterator[httpx.AsyncClient]:
    kept = KeptResponses(store=store, by_default=False)
    async with bench.client(kept_responses=kept) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_that_was_to_be_kept_is_given_again(
    client: httpx.AsyncClient, stream: bool
) -> None:
    answer = await respond(client, store=True, stream=stream)
    said = events_of(answer.text)[-1]["response"] if stream else answer.json()
    assert said["store"] is True
    again = await client.get(f"/v1/responses/{said['id']}")
    assert again.status_code == 200 and again.json() == said


@pytest.mark.parametrize("asked", [{}, {"store": False}, {"store": None}])
async def test_nothing_is_kept_unasked(
    client: httpx.AsyncClient, redis: RedisServer, asked: dict[str, Any]
) -> None:
    with redis.client() as inside:
        inside.flushall()
        said = (await respond(client, **asked)).json()
        assert said["store"] is False
        assert inside.keys() == []
    assert (await client.get(f"/v1/responses/{said['id']}")).status_code == 404


async def test_a_server_may_keep_what_does_not_say(bench: Bench, store: ResponseStore) -> None:
    kept = KeptResponses(store=store, by_default=True)
    async with bench.client(kept_responses=kept) as client:
        assert (await respond(client)).json()["store"] is True
        assert (await respond(client, store=False)).json()["store"] is False


async def test_a_conversation_goes_on_from_what_was_kept(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.reply = f"<think>So.</think>Well.{CALL}"
    first = (await respond(client, store=True, tools=[WEATHER], instructions="Be brief.")).json()
    call = first["output"][-1]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "warm"}
    bench.dispatcher.reply = "It is warm."
    previous = {"store": True, "previous_response_id": first["id"]}
    second = (await respond(client, input=[output], **previous)).json()
    assert prompt_of(bench) == (
        "<|im_start|>user\nhi<|im_end|>\n"
        f"<|im_start|>assistant\n<think>So.</think>Well.<tool_call>{call['call_id']} weather {{}}"
        "</tool_call><|im_end|>\n"
        f"<|im_start|>tool({call['call_id']} weather)\nwarm<|im_end|>\n<|im_start|>assistant\n"
    )
    assert second["previous_response_id"] == first["id"]
    await client.delete(f"/v1/responses/{first['id']}")
    await respond(client, input="And now?", previous_response_id=second["id"])
    assert "warm" in prompt_of(bench) and "hi<|im_end|>" in prompt_of(bench)
    assert prompt_of(bench).endswith(
        "It is warm.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_items_may_be_referred_to(bench: Bench, client: httpx.AsyncClient) -> None:
    said = (await respond(client, store=True)).json()
    item = {"type": "item_reference", "id": said["output"][0]["id"]}
    asked = [{"role": "user", "content": "hi"}, item, {"role": "user", "content": "more"}]
    assert (await respond(client, input=asked)).status_code == 200
    assert "assistant\nHello there.<|im_end|>" in prompt_of(bench)
    asked[1]["id"] = item["id"].removesuffix("0") + "7"
    error = error_of(await respond(client, input=asked))
    assert (error["param"], error["code"]) == ("input[1].id", "item_not_found")


async def test_items_of_a_recent_answer_may_be_referred_to_unless_it_was_not_to_be_kept(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    for store, status in ((None, 200), (False, 404)):
        said = (await respond(client, store=store)).json()
        asked = [{"role": "user", "content": "hi"}, {"id": said["output"][0]["id"]}]
        assert (await respond(client, input=asked)).status_code == status
        if status == 200:
            assert "assistant\nHello there.<|im_end|>" in prompt_of(bench)
        assert (await client.get(f"/v1/responses/{said['id']}")).status_code == 404
        assert (await respond(client, previous_response_id=said["id"])).status_code == 404


async def test_input_items_are_listed_page_by_page(client: httpx.AsyncClient) -> None:
    texts = [str(number) for number in range(5)]
    items = [{"role": "user", "content": text, "id": "same"} for text in texts]
    said = (await respond(client, store=True, input=items)).json()
    path = f"/v1/responses/{said['id']}/input_items"

    async def walk(**query: Any) -> list[str]:
        found: list[str] = []
        more: dict[str, Any] = {}
        while True:
            page = (await client.get(path, params=query | more)).json()
            found += [item["content"][0]["text"] for item in page["data"]]
            if not page["has_more"]:
                return found
            more = {"after": page["last_id"]}

    assert await walk(order="asc", limit=2) == texts
    assert await walk(limit=1) == await walk() == texts[::-1]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "nobody"}, "after"),
    ],
)
async def test_a_page_that_cannot_be_is_refused(
    client: httpx.AsyncClient, query: dict[str, Any], param: str
) -> None:
    said = (await respond(client, store=True)).json()
    response = await client.get(f"/v1/responses/{said['id']}/input_items", params=query)
    assert response.status_code == 400 and error_of(response)["param"] == param


async def test_a_deleted_response_is_gone(client: httpx.AsyncClient) -> None:
    said = (await respond(client, store=True)).json()
    path = f"/v1/responses/{said['id']}"
    told = {"id": said["id"], "object": "response", "deleted": True}
    assert (await client.delete(path)).json() == told
    for response in (await client.delete(path), await client.get(path)):
        assert response.status_code == 404
        assert error_of(response)["code"] == "response_not_found"
    gone = await respond(client, previous_response_id=said["id"])
    assert gone.status_code == 404
    assert error_of(gone)["code"] == "previous_response_not_found"


async def test_what_ran_before_its_client_cannot_be_cancelled(client: httpx.AsyncClient) -> None:
    said = (await respond(client, store=True)).json()
    assert (await client.post("/v1/responses/resp_1/cancel")).status_code == 404
    response = await client.post(f"/v1/responses/{said['id']}/cancel")
    assert response.status_code == 400
    assert error_of(response)["code"] == "not_in_background"


async def test_events_are_not_kept(client: httpx.AsyncClient) -> None:
    said = (await respond(client, store=True)).json()
    response = await client.get(f"/v1/responses/{said['id']}", params={"stream": "true"})
    assert error_of(response)["param"] == "stream"


async def test_a_key_sees_its_own_responses_alone(bench: Bench, store: ResponseStore) -> None:
    kept = KeptResponses(store=store, by_default=False)
    async with bench.client(kept_responses=kept, api_keys=("mine", "yours")) as client:
        client.headers["authorization"] = "Bearer mine"
        said = (await respond(client, store=True)).json()
        client.headers["authorization"] = "Bearer yours"
        path = f"/v1/responses/{said['id']}"
        for response in (
            await client.get(path),
            await client.delete(path),
            await respond(client, previous_response_id=said["id"]),
            await respond(client, input=[{"id": said["output"][0]["id"]}]),
        ):
            assert response.status_code == 404
    async with bench.client(kept_responses=kept, api_keys=("new", "yours", "mine")) as client:
        client.headers["authorization"] = "Bearer mine"
        assert (await client.get(path)).json() == said


async def test_keys_of_one_tenant_share_its_responses_and_no_other_sees_them(
    bench: Bench, store: ResponseStore
) -> None:
    ring = KeyRing(
        ApiKey(digest=key_digest(name.encode()), tenant=tenant)
        for name, tenant in (("a", "acme"), ("b", "acme"), ("c", "other"))
    )
    kept = KeptResponses(store=store, by_default=False)
    async with bench.client(kept_responses=kept, keys=ring) as client:
        client.headers["authorization"] = "Bearer a"
        path = f"/v1/responses/{(await respond(client, store=True)).json()['id']}"
        statuses = {}
        for name in "abc":
            client.headers["authorization"] = f"Bearer {name}"
            statuses[name] = (await client.get(path)).status_code
    assert statuses == {"a": 200, "b": 200, "c": 404}


async def test_an_answer_too_large_to_be_kept_says_so(bench: Bench, redis: RedisServer) -> None:
    store = ResponseStore(redis.address, ttl_s=60, max_bytes=lambda: 4096, deadline_s=2.0)
    kept = KeptResponses(store=store, by_default=False)
    async with bench.client(kept_responses=kept) as client:
        said = (await respond(client, store=True)).json()
    await store.close()
    assert said["status"] == "completed" and said["store"] is False


async def test_what_is_read_again_takes_the_room_of_a_body(
    bench: Bench, store: ResponseStore
) -> None:
    kept = KeptResponses(store=store, by_default=False)
    async with bench.client(kept_responses=kept) as client:
        said = (await respond(client, input="word " * 300, store=True)).json()
    size = {"max_body_bytes": 1024, "max_bodies_bytes": 2048}
    async with bench.client(kept_responses=kept, **size) as client:
        for response in (
            await client.get(f"/v1/responses/{said['id']}"),
            await respond(client, previous_response_id=said["id"]),
        ):
            assert response.status_code == 429 and error_of(response)["code"] == "overloaded"
        assert (await respond(client)).status_code == 200


async def test_no_redis_harms_only_what_needs_it(bench: Bench) -> None:
    store = ResponseStore(
        RedisAddress(url="redis://127.0.0.1:1/0"),
        ttl_s=60,
        max_bytes=lambda: 1 << 20,
        deadline_s=2.0,
    )
    kept = KeptResponses(store=store, by_default=False)
    async with bench.client(kept_responses=kept) as client:
        said = (await respond(client, store=True)).json()
        assert said["status"] == "completed" and said["store"] is False
        for response in (
            await client.get(f"/v1/responses/{said['id']}"),
            await client.delete(f"/v1/responses/{said['id']}"),
            await respond(client, previous_response_id=said["id"]),
        ):
            assert response.status_code == 503 and response.headers["retry-after"] == "1"
            assert error_of(response)["code"] == "store_unavailable"
    await store.close()


async def test_what_goes_on_without_a_name_goes_on_with_the_model_that_answered(
    store: ResponseStore, tmp_path: Path
) -> None:
    bench = two_models(tmp_path)
    async with bench.client(kept_responses=KeptResponses(store=store, by_default=True)) as client:
        first = await respond(client, model=OTHER)
        again = await respond(client, model=None, previous_response_id=first.json()["id"])
        assert again.json()["model"] == OTHER
        unknown = await respond(client, model=None, previous_response_id="resp_none")
        assert unknown.status_code == 404
