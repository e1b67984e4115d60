"""Pages of other origins: asked beforehand, answered, refused."""

import httpx
import pytest
from support.api import Bench

pytestmark = pytest.mark.anyio
PAGE = "https://chat.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "x-api-key,content-type",
}
ALLOWED, HEADERS = "access-control-allow-origin", "access-control-allow-headers"


async def asked(client: httpx.AsyncClient, **more: str) -> httpx.Response:
    return await client.options("/v1/messages", headers=PREFLIGHT | more)


async def test_a_preflight_needs_no_key_and_is_counted_and_named(bench: Bench) -> None:
    async with bench.client(cors_origins={PAGE}, api_keys=("right",)) as client:
        answer = await asked(client)
        assert (answer.status_code, answer.headers[ALLOWED]) == (200, PAGE)
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers[HEADERS] == "x-api-key,content-type"
        assert answer.headers["x-request-id"]
        exposition = (await client.get("/metrics")).text
    assert 'baton_requests_total{path="/v1/messages",status="200"} 1.0' in exposition


async def test_other_pages_are_refused(bench: Bench) -> None:
    async with bench.client(cors_origins={PAGE}) as client:
        answer = await asked(client, origin="https://evil.example")
        assert answer.status_code == 400
        assert ALLOWED not in answer.headers
        read = await client.get("/v1/models", headers={"origin": "https://evil.example"})
        assert ALLOWED not in read.headers


async def test_any_page_may_where_all_may(bench: Bench) -> None:
    async with bench.client(cors_origins={"*"}) as client:
        assert (await asked(client, origin="https://any.example")).headers[ALLOWED] == "*"


@pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/cluster"])
async def test_answers_and_errors_can_be_read_by_the_page(bench: Bench, path: str) -> None:
    bench.cluster.shown = object()  # type: ignore[assignment]  # /cluster: a mistake of ours
    async with bench.client(cors_origins={PAGE}, api_keys=("right",)) as client:
        for key in ("right", "wrong"):
            headers = {"origin": PAGE, "x-api-key": key}
            answer = await client.get(path, headers=headers)
            assert answer.headers[ALLOWED] == PAGE
            shown = answer.headers["access-control-expose-headers"].split(", ")
            assert "x-request-id" in shown
            assert "x-ratelimit-remaining-tokens" in shown
            assert "anthropic-ratelimit-tokens-remaining" in shown


async def test_without_the_setting_there_is_no_cors(bench: Bench) -> None:
    async with bench.client(api_keys=("right",)) as client:
        assert (await asked(client)).status_code == 401
        read = await client.get("/v1/models", headers={"origin": PAGE, "x-api-key": "right"})
        assert read.status_code == 200
        assert ALLOWED not in read.headers


async def test_an_open_api_on_loopback_lets_its_pages_in_and_no_others(bench: Bench) -> None:
    local = {"local_names": frozenset(), "cors_origins": {PAGE}}
    async with bench.client(**local) as client:
        for origin, status in ((PAGE, 200), ("https://evil.example", 403)):
            headers = {"origin": origin, "host": "127.0.0.1"}
            assert (await client.get("/v1/models", headers=headers)).status_code == status
        named = {"origin": PAGE, "host": "rebound.example"}
        assert (await client.get("/v1/models", headers=named)).status_code == 403
