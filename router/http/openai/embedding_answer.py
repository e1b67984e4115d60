"""Pooled prompts as OpenAI's embeddings: cut, brought to length 1, encoded as they leave."""

import math
import sys
from array import array
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import msgspec

from protocol.messages import Token
from router.api.errors import ApiError, bad_field
from router.api.generation import Generation, ShownVectors
from router.http.answer import AnswerWriter, route_header
from router.http.exchange import Exchange
from router.http.json_pieces import respond_json
from router.requests.events import Ended, Pooled, Read


class EmbeddingAnswer(AnswerWriter):
    """Sends one JSON object, or one error object, at the end."""

    def __init__(self, generation: Generation, exchange: Exchange) -> None:
        super().__init__(generation, exchange)
        assert generation.vectors is not None, "no vectors are asked for"
        self._wish = generation.vectors
        self._vectors: dict[int, array[float]] = {}

    def read(self, index: int, read: Read) -> None:
        assert isinstance(read, Pooled), "nobody asks for scores here"
        self._vectors[index] = vector = shown_vector(read.values, self._wish)
        self.num_held += len(vector) // 16

    def token(self, index: int, token: Token) -> None:
        raise AssertionError("nothing is generated here")

    async def ended(self, index: int, ended: Ended) -> None:
        """Its vector is there."""

    async def finish(self) -> None:
        num_tokens = self._generation.prompt_tokens
        answer = {
            "object": "list",
            "data": self._entries(),
            "model": self._generation.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
        await respond_json(self._exchange, answer, route_header(self._route))

    async def fail(self, error: ApiError) -> None:
        await self._exchange.refuse(error)

    def _entries(self) -> Iterator[dict[str, Any]]:
        encode = _as_base64 if self._wish.as_base64 else array.tolist
        for index in range(len(self._generation.requests)):
            shown = msgspec.Raw(msgspec.json.encode(encode(self._vectors.pop(index))))
            yield {"object": "embedding", "index": index, "embedding": shown}


def shown_vector(values: bytes, shown: ShownVectors) -> "array[float]":
    """float32. Raises ApiError: 400 for more dimensions than there are, 500 for a vector that has
    no direction."""
    vector = array("f", values)
    if sys.byteorder == "big":
        vector.byteswap()
    most, asked = len(vector), shown.num_dimensions
    if asked is not None:
        if asked > most:
            raise bad_field("dimensions", f"at most {most}, the model's; got {asked}")
        vector = vector[:asked]
    length = math.sqrt(math.fsum(value * value for value in vector))
    if not math.isfinite(length) or (shown.is_normalised and not length):
        raise ApiError(500, "The model answers no number for a text.", code="internal_error")
    if shown.is_normalised:
        vector = array("f", (value / length for value in vector))
    return vector


def _as_base64(vector: "array[float]") -> str:
    """Of little-endian float32."""
    if sys.byteorder == "big":
        vector.byteswap()
    return b64encode(vector.tobytes()).decode()
