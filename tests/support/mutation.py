"""Spoils words as an enemy who knows the format would, and as a broken wire does.

Everything is drawn from one seeded source of chance, so a seed is a reproduction.
"""

import random
import struct
from typing import Any

import msgspec

EDGES = (0, 1, 2, 127, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
         (1 << 63) - 1, (1 << 64) - 1)  # fmt: skip
_MANY = 2_000


class Mutator:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def word(self, packed: bytes) -> bytes:
        """A msgpack word with some of its values, or some of its bytes, changed."""
        if self.chance.random() < 0.2:
            return self.raw(packed)
        try:
            value = msgspec.msgpack.decode(packed)
        except msgspec.MsgspecError:
            return self.raw(packed)
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            value = self._somewhere(value)
        try:
            return msgspec.msgpack.encode(value)
        except (OverflowError, msgspec.MsgspecError):
            return self.raw(packed)

    def raw(self, packed: bytes) -> bytes:
        """Bytes flipped, cut, put in, repeated, or all of them others."""
        spoilt, chance = bytearray(packed), self.chance
        at = chance.randrange(len(spoilt) + 1)
        match chance.randrange(5):
            case 0 if spoilt:
                for _ in range(chance.choice((1, 1, 4, 32))):
                    spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
            case 1:
                del spoilt[at:]
            case 2:
                spoilt[at:at] = chance.randbytes(chance.choice((1, 4, 300)))
            case 3:
                spoilt[at:at] = spoilt[at : at + chance.randrange(1, 64)]
            case _:
                spoilt[:] = chance.randbytes(chance.choice((0, 1, 16, 500)))
        return bytes(spoilt)

    def _somewhere(self, value: Any) -> Any:
        """One value inside, or the whole, made another."""
        if isinstance(value, dict) and value and self.chance.random() < 0.9:
            key = self.chance.choice(list(value))
            if self.chance.random() < 0.1:
                return {name: item for name, item in value.items() if name != key}
            return {**value, key: self._somewhere(value[key])}
        if isinstance(value, list) and value and self.chance.random() < 0.7:
            at = self.chance.randrange(len(value))
            return [*value[:at], self._somewhere(value[at]), *value[at + 1 :]]
        return self._hostile(value)

    def _hostile(self, value: Any) -> Any:
        chance = self.chance
        if chance.random() < 0.1:
            return chance.choice((None, True, -1, 0.5, "", b"", [], {}, [[]] * 9, float("nan")))
        match value:
            case bool():
                return not value
            case int():
                near = (value + 1, value - 1, value ^ (1 << chance.randrange(32)), -value)
                return chance.choice((*EDGES, *near, chance.getrandbits(63)))
            case float():
                return chance.choice((float("nan"), float("inf"), -1.0, 1e308, 0.0, value * 1e6))
            case str():
                return chance.choice(
                    ("", value * _MANY, value + "\0", value[:-1], "127.0.0.1:1", "é")
                )
            case bytes():
                return self._packed(value)
            case list():
                return chance.choice((value * 2, value[::-1], value[:-1], [], value * _MANY))
        return chance.choice((0, "", [], {}))

    def _packed(self, value: bytes) -> bytes:
        """Packed arrays: one aligned number made another, or the whole cut or repeated."""
        size, code = self.chance.choice(((4, "<I"), (8, "<Q")))
        if len(value) >= size and self.chance.random() < 0.7:
            at = size * self.chance.randrange(len(value) // size)
            number = self.chance.choice(EDGES) % (1 << 8 * size)
            return value[:at] + struct.pack(code, number) + value[at + size :]
        return self.chance.choice(
            (b"", value[:-1], value + b"\0", value * 2, value[: len(value) // 2])
        )
