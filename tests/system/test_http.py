"""RFC 9110 and 9112 in bytes, as clients, proxies and strangers send them
to a router process."""

import asyncio
import gzip
import json
from collections.abc import Iterator

import pytest
from support import raw_http
from support.checkpoints import write_checkpoint
from support.raw_http import CHAT, Answer, connected, exchange
from support.redis_server import redis_server
from support.router_process import deployed

pytestmark = [pytest.mark.system, pytest.mark.anyio]
ASKED = {
    "model": "fake",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 3,
    "seed": 1,
}
BODY = json.dumps(ASKED).encode()
STREAM = json.dumps(ASKED | {"stream": True}).encode()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = write_checkpoint(tmp_path_factory.mktemp("http") / "fake")
    with redis_server() as redis, deployed(redis, model) as made:
        yield made.url


def post(*headers: bytes, body: bytes = BODY) -> bytes:
    return raw_http.post(*headers, body=body)


def chunked(*headers: bytes, body: bytes = BODY, size: int = 7, tail: bytes = b"\r\n") -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    lines = b"".join(header + b"\r\n" for header in headers)
    return CHAT + lines + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + tail


def get(path: str, *headers: bytes, method: str = "GET") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode() + lines + b"\r\n"


def is_said(answer: Answer) -> bool:
    """The fake workers say numbers, as many as tokens were asked for."""
    text: str = json.loads(answer.body)["choices"][0]["message"]["content"]
    return len(text.split()) == ASKED["max_tokens"]


H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAA")
WEBSOCKET = (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: eA==")
FORM = b"Content-Type: application/x-www-form-urlencoded"
ZIPPED = gzip.compress(BODY)
SERVED = {
    "curl --http2 with -d": post(*H2C, FORM),
    "Java's HttpClient, chunked": chunked(*H2C, b"Content-Type: application/json"),
    "an offer of a websocket": post(*WEBSOCKET),
    "an offer without Connection": post(b"Upgrade: TLS/1.3"),
    "Connection: upgrade without an offer": post(b"Connection: upgrade"),
    "header names in any case": post(b"CONTENT-TYPE: application/json", b"aCCEPT: */*"),
    "an odd Accept": post(b"Accept: text/html;q=0.1, image/*", b"Accept-Encoding: br;q=0"),
    "no space after the colon": post(b"X-A:b", b"X-Empty:"),
    "bytes beyond ASCII in a value": post(b"X-Name: \xc3\xa9\xff"),
    "a body in chunks": chunked(),
    "a body in one chunk": chunked(size=10_000),
    "trailers": chunked(tail=b"X-Checksum: 1\r\nAuthorization: Bearer x\r\n\r\n"),
    "chunk extensions": chunked().replace(b"7\r\n", b'7;a="b"\r\n', 1),
    "capital chunk sizes": chunked(size=11).replace(b"b\r\n", b"0B\r\n"),
    "a chunk that is an empty line": chunked(body=b"\r\n\r\n" + BODY + b"\r\n\r\n", size=4),
    "a compressed body": post(b"Content-Encoding: gzip", body=ZIPPED),
    "a compressed body in chunks": chunked(b"Content-Encoding: gzip", body=ZIPPED),
    "an absolute target": post().replace(b"POST /", b"POST http://localhost:80/"),
    "an absolute target's host, not Host": post()
    .replace(b"POST /", b"POST HTTP://[::1]/")
    .replace(b"Host: 127.0.0.1", b"Host: elsewhere.example"),
    "a type said twice": post(b"Content-Type: application/json", b"content-type: application/json"),
    "a body compressed in parts": post(
        b"Content-Encoding: gzip", body=gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])
    ),
    "empty lines before the request": b"\r\n\r\n" + post(),
    "a query": post().replace(b"completions HTTP", b"completions?api-version=1&x HTTP"),
    "a slash too many": post().replace(b"completions HTTP", b"completions/ HTTP"),
    "a base URL with a slash": post().replace(b"POST /v1", b"POST //v1/"),
    "a percent-encoded path": post().replace(b"/chat", b"/c%68at"),
    "a Host with a port": post().replace(b"Host: 127.0.0.1", b"Host: [::1]:8000"),
    "an empty Host": post().replace(b"Host: 127.0.0.1", b"Host:"),
    "a name of this machine": post().replace(b"127.0.0.1", b"app.localhost:3000"),
    "a page of this machine": post(b"Origin: http://localhost:3000"),
    "Expect, unasked": post(b"Expect: 100-Continue"),
}


@pytest.mark.parametrize("sent", SERVED.values(), ids=SERVED)
async def test_what_clients_send_is_served(url: str, sent: bytes) -> None:
    """Whole, and in pieces that end anywhere; then the connection is good for another."""
    for size in (len(sent), 9):
        async with connected(url) as client:
            for start in range(0, len(sent), size):
                client.send(sent[start : start + size])
                await client.writer.drain()
                await asyncio.sleep(0)
            answer = await client.answer()
            if answer.status == 100:
                answer = await client.answer()
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            assert is_said(answer) and answer.headers["date"].endswith("GMT")
            client.send(get("/health"))
            assert (await client.answer()).status == 200


HUGE = b"9" * 40
REFUSED = {
    "no Host": (post().replace(b"Host: 127.0.0.1\r\n", b""), 400),
    "two Hosts": (post(b"Host: y"), 400),
    "a Host that is none": (post().replace(b"Host: 127.0.0.1", b"Host: x/y z"), 400),
    "two types": (post(b"Content-Type: application/json", b"Content-Type: text/plain"), 400),
    "two keys": (post(b"Authorization: Bearer a", b"authorization: Bearer b"), 400),
    "two compressions": (post(b"Content-Encoding: gzip", b"Content-Encoding: identity"), 400),
    "two Origins": (post(b"Origin: http://localhost", b"Origin: http://x"), 400),
    "a target of elsewhere": (get("http://elsewhere.example/v1/models"), 403),
    "a target with a user": (get("http://localhost@elsewhere.example/v1/models"), 400),
    "a target without a host": (get("http:///v1/models"), 400),
    "two lengths": (post(b"Content-Length: 1"), 400),
    "one length twice": (post(b"Content-Length: %d" % len(BODY)), 400),
    "a list of lengths": (CHAT + b"Content-Length: 1, 1\r\n\r\n1", 400),
    "a length below zero": (CHAT + b"Content-Length: -1\r\n\r\n", 400),
    "a length with a sign": (CHAT + b"Content-Length: +1\r\n\r\n1", 400),
    "a length in hex": (CHAT + b"Content-Length: 0x1\r\n\r\n1", 400),
    "no length at all": (CHAT + b"Content-Length: \r\n\r\n", 400),
    "a length beyond numbers": (CHAT + b"Content-Length: %b\r\n\r\n" % HUGE, 413),
    "a length beyond the limit": (CHAT + b"Content-Length: 9999999999\r\n\r\n", 413),
    "a length and chunks": (chunked(b"Content-Length: 5"), 400),
    "chunks twice": (chunked(b"Transfer-Encoding: chunked"), 501),
    "another coding": (chunked().replace(b": chunked", b": gzip, chunked"), 501),
    "no coding": (chunked().replace(b": chunked", b": identity"), 501),
    "chunks in HTTP/1.0": (chunked().replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    "a chunk size that is none": (CHAT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a chunk size below zero": (CHAT + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
    "a chunk size in 0x": (CHAT + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\n", 400),
    "a chunk size beyond numbers": (
        CHAT + b"Transfer-Encoding: chunked\r\n\r\n%b\r\n" % (b"f" * 20),
        400,
    ),
    "a chunk longer than it says": (CHAT + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
    "chunks with bare LF": (CHAT + b"Transfer-Encoding: chunked\r\n\r\n1\n{\n0\n\n", 400),
    "chunks of little else": (
        CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 40_000,
        400,
    ),
    "endless trailers": (chunked(tail=b"X: y\r\n" * 40_000), 400),
    "bare LF": (b"GET /health HTTP/1.1\nHost: 127.0.0.1\n\n", 400),
    "one bare LF": (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\nX: y\r\n\r\n", 400),
    "a bare CR": (get("/health", b"X: a\rb"), 400),
    "a folded header": (get("/health", b"X: a\r\n b"), 400),
    "a header before any": (b"GET /health HTTP/1.1\r\n Host: 127.0.0.1\r\n\r\n", 400),
    "a space in a name": (get("/health", b"X A: b"), 400),
    "a space after a name": (get("/health", b"X: a", b"Host : y"), 400),
    "a header without a name": (get("/health", b": b"), 400),
    "a header without a colon": (get("/health", b"X"), 400),
    "a zero byte": (get("/health", b"X: a\0b"), 400),
    "a name beyond ASCII": (get("/health", b"X\xc3\xa9: b"), 400),
    "many headers": (get("/health", *[b"X: y"] * 200), 431),
    "a header without an end": (get("/health")[:-2] + b"X: " + b"y" * 200_000, 431),
    "headers without an end": (get("/health")[:-2] + b"X: yyyyyyy\r\n" * 20_000, 431),
    "a long header": (get("/health", b"X: " + b"y" * 60_000), 431),
    "a long URL": (get("/" + "a" * 20_000), 414),
    "a URL without an end": (b"GET /" + b"a" * 200_000, 414),
    "no path": (get("health"), 400),
    "a fragment": (get("/health#x"), 400),
    "a space in the path": (get("/a b"), 400),
    "a path beyond ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
    "a star for GET": (get("*"), 400),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /health HTTP/1.2\r\nHost: 127.0.0.1\r\n\r\n", 505),
    "no version": (b"GET /health HTTP/x\r\nHost: 127.0.0.1\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), 400),
    "noise": (b"\xff" * 100, 400),
    "an unknown method": (get("/health", method="BREW"), 501),
    "a method in small letters": (get("/health", method="get"), 501),
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 501),
    "another expectation": (post(b"Expect: 200-ok"), 417),
    "plain text": (post(b"Content-Type: text/plain"), 415),
    "another compression": (post(b"Content-Encoding: br"), 415),
    "no such compression": (post(b"Content-Encoding: gzip"), 400),
    "a foreign Host": (post().replace(b"127.0.0.1", b"elsewhere.example"), 403),
    "a foreign Origin": (post(b"Origin: https://elsewhere.example"), 403),
    "an Origin of an address": (post(b"Origin: http://93.184.216.34"), 403),
    "a hidden Origin": (post(b"Origin: null"), 403),
    "a small bomb": (post(b"Content-Encoding: gzip", body=gzip.compress(b" " * (9 << 20))), 413),
}


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_request_is_refused_in_json(url: str, sent: bytes, status: int) -> None:
    """Also in pieces; and the router serves on."""
    for size in (len(sent), 997):
        pieces = [sent[i : i + size] for i in range(0, len(sent), size)]
        answer = await exchange(url, *pieces)
        assert answer.status == status, answer.body
        assert answer.error["type"] == "invalid_request_error" or status >= 500
        assert len(answer.headers["x-request-id"]) == 32 and "date" in answer.headers
    assert (await exchange(url, get("/health"), to="GET")).status == 200


NAMED = ("two lengths", "chunks of little else", "a length beyond the limit", "plain text")


@pytest.mark.parametrize("sent", [REFUSED[name][0] for name in NAMED], ids=NAMED)
async def test_a_refusal_has_the_request_id_it_was_sent(url: str, sent: bytes) -> None:
    named = sent.replace(b"\r\n", b"\r\nX-Request-Id: my/id-1\r\n", 1)
    assert (await exchange(url, named)).headers["x-request-id"] == "my/id-1"


CLOSED = ("no Host", "a length and chunks", "bare LF", "headers without an end", "TLS")


@pytest.mark.parametrize("sent", [REFUSED[name][0] for name in CLOSED], ids=CLOSED)
async def test_a_connection_is_closed_when_its_requests_cannot_be_told_apart(
    url: str, sent: bytes
) -> None:
    async with connected(url) as client:
        client.send(sent + get("/health"))
        answer = await client.answer()
        assert answer.headers["connection"] == "close"
        assert await client.ended()


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("HEAD", "/health", 200, None),
        ("HEAD", "/v1/models", 200, None),
        ("HEAD", "/metrics", 200, None),
        ("HEAD", "/nowhere", 404, None),
        ("HEAD", "/v1/completions", 405, "POST, OPTIONS"),
        ("GET", "/v1/completions", 405, "POST, OPTIONS"),
        ("DELETE", "/v1/models", 405, "GET, HEAD, OPTIONS"),
        ("PUT", "/health", 405, "GET, HEAD, OPTIONS"),
        ("TRACE", "/health", 405, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/v1/models", 204, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/v1/chat/completions", 204, "POST, OPTIONS"),
        ("OPTIONS", "*", 204, "GET, HEAD, POST, OPTIONS"),
        ("OPTIONS", "/nowhere", 404, None),
        ("GET", "/v1/models/", 200, None),
        ("GET", "//v1//models", 200, None),
        ("GET", "/%76%31/models", 200, None),
        ("GET", "/v1/../v1/models", 404, None),
        ("GET", "/v1/models%00", 404, None),
        ("GET", "/%ff%fe", 404, None),
        ("GET", "http://localhost/health", 200, None),
        ("GET", "http://localhost", 404, None),
    ],
)
async def test_methods_and_paths(
    url: str, method: str, path: str, status: int, allow: str | None
) -> None:
    """On one connection twice: no answer has more or fewer bytes than it says."""
    async with connected(url) as client:
        for _ in range(2):
            client.send(get(path, method=method))
            answer = await client.answer(to=method)
            assert (answer.status, answer.headers.get("allow")) == (status, allow)
            if method != "HEAD" and status >= 400:
                assert answer.error
        if method == "HEAD":
            plain = await exchange(url, get(path), to="GET")
            assert plain.status == status or allow
            if path != "/metrics":
                assert answer.headers["content-length"] == plain.headers["content-length"]


async def test_a_preflight_of_another_origin_is_not_granted(url: str) -> None:
    asked = get(
        "/v1/chat/completions",
        b"Origin: https://elsewhere.example",
        b"Access-Control-Request-Method: POST",
        method="OPTIONS",
    )
    answer = await exchange(url, asked)
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_pipelined_requests_are_answered_in_order(url: str) -> None:
    """Every kind of body between them, and an offer to upgrade in the second."""
    sent = chunked() + post(*H2C, body=STREAM) + get("/health") + post() + get("/v1/models")
    async with connected(url) as client:
        client.send(sent)
        answers = [await client.answer(to="GET") for _ in range(5)]
        assert [answer.status for answer in answers] == [200] * 5
        assert is_said(answers[0]) and is_said(answers[3])
        assert answers[1].body.endswith(b"data: [DONE]\n\n")
        assert json.loads(answers[2].body) == {"status": "alive"}


async def test_a_pipelined_mistake_is_answered_after_what_came_before(url: str) -> None:
    async with connected(url) as client:
        client.send(post() + b"bad\r\n\r\n" + get("/health"))
        assert is_said(await client.answer())
        assert (await client.answer()).status == 400
        assert await client.ended()


async def test_a_client_of_http_1_0_gets_no_chunks_and_an_end(url: str) -> None:
    for body, expect in ((BODY, b""), (STREAM, b"Expect: 100-continue\r\nX-A: b\r\n")):
        async with connected(url) as client:
            head = b"POST /v1/chat/completions HTTP/1.0\r\n" + expect
            client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = await client.answer()
            assert answer.status == 200 and "transfer-encoding" not in answer.headers
            assert answer.headers["connection"] == "close"
            assert await client.ended()
    assert answer.body.startswith(b"data: {") and answer.body.endswith(b"data: [DONE]\n\n")


async def test_a_body_that_waits_to_be_wanted_is_asked_for(url: str) -> None:
    async with connected(url) as client:
        head, _, body = post(b"Expect: 100-continue").partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert (await client.head()) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert is_said(await client.answer())


@pytest.mark.parametrize(
    "headers", [b"Content-Length: 9999999999", b"Content-Length: 9\r\nContent-Type: text/plain"]
)
async def test_a_body_that_waits_is_not_asked_for_to_be_refused(url: str, headers: bytes) -> None:
    async with connected(url) as client:
        client.send(CHAT + b"Expect: 100-continue\r\n" + headers + b"\r\n\r\n")
        answer = await client.answer()
        assert answer.status in (413, 415) and answer.headers["connection"] == "close"
        assert await client.ended()


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "streamed"])
@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
async def test_a_client_that_closes_its_side_gets_its_answer(
    url: str, body: bytes, close: bytes
) -> None:
    async with connected(url) as client:
        client.send(CHAT + close + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        client.half_close()
        answer = await client.answer()
        assert answer.status == 200 and b'"finish_reason":"length"' in answer.body
        assert await client.ended()


async def test_all_that_was_asked_before_a_client_closed_its_side_is_answered(url: str) -> None:
    async with connected(url) as client:
        client.send(post() + chunked() + get("/health") + b"GET /heal")
        client.half_close()
        assert is_said(await client.answer()) and is_said(await client.answer())
        assert (await client.answer(to="GET")).status == 200
        assert await client.ended()


async def test_half_a_request_and_a_closed_side_is_the_end(url: str) -> None:
    for sent in (b"GET /heal", post()[:-3], chunked()[:-4]):
        async with connected(url) as client:
            client.send(sent)
            client.half_close()
            assert await client.ended()
