"""JSON of any size to a client: encoded piece by piece while it is sent, so that neither a copy of
the whole nor a long turn of the event loop is made. What fits into one piece has a length."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from router.http.exchange import Exchange

PIECE_BYTES = 64 << 10
"""Less than a client's write buffer has room for, and a fraction of a millisecond."""
_ITEMS = 64
_encode = msgspec.json.encode


async def respond_json(exchange: Exchange, value: Any, headers: Mapping[str, str]) -> None:
    pieces = json_pieces(value)
    piece, following = next(pieces), next(pieces, None)
    if following is None:
        response = Response(piece, 200, headers, media_type="application/json")
        await exchange.respond(response)
        return
    shown = {"content-type": "application/json", **headers}
    raw = [(name.encode(), text.encode("latin-1")) for name, text in shown.items()]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": raw})
    while following is not None:
        await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0)  # others' turn: the client may well read as fast as we write
        piece, following = following, next(pieces, None)
    await exchange.send({"type": "http.response.body", "body": piece, "more_body": False})


def json_pieces(value: Any) -> Iterator[bytes]:
    """At least one. Longer than `PIECE_BYTES` by no more than a string or `_ITEMS` items."""
    piece = bytearray()
    for part in _parts(value):
        piece += part
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _parts(value: Any) -> Iterator[bytes]:
    match value:
        case dict():
            for number, (name, inner) in enumerate(value.items()):
                yield (b"," if number else b"{") + _encode(name) + b":"
                yield from _parts(inner)
            yield b"}" if value else b"{}"
        case [dict(), *_] | Iterator():
            yield b"["
            for number, inner in enumerate(value):
                yield b"," if number else b""
                yield from _parts(inner)
            yield b"]"
        case list():
            yield b"["
            for start in range(0, len(value), _ITEMS):
                yield (b"," if start else b"") + _encode(value[start : start + _ITEMS])[1:-1]
            yield b"]"
        case _:
            yield _encode(value)
