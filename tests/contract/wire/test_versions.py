"""What an earlier version of the wire wrote is read by this one, and what this one writes by it:
a version adds to the one before, and changes nothing (`protocol.codec`)."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.wire_samples import UNIONS, kinds, sample, written

from protocol.codec import SPOKEN_VERSIONS, WIRE_VERSION
from protocol.messages import Registration

HERE = Path(__file__).parent
FIRST = 8
"""The first of which an example is kept."""
KEPT = [version for version in SPOKEN_VERSIONS if version >= FIRST]
CASES = [
    (version, link, name, text)
    for version in KEPT
    for link, messages in json.loads((HERE / f"version_{version}.json").read_text()).items()
    if link in UNIONS
    for name, text in messages.items()
]


@pytest.mark.parametrize(("version", "link", "name", "text"), CASES)
def test_what_a_spoken_version_wrote_is_read_and_written_again(
    version: int, link: str, name: str, text: str
) -> None:
    codec, union = UNIONS[link]
    frame = bytes.fromhex(text)
    message = codec.decode(frame)
    assert type(message) is kinds(union)[name]
    again = codec.encode(message)
    assert holds(msgspec.msgpack.decode(again), msgspec.msgpack.decode(frame))


@pytest.mark.parametrize("version", KEPT)
def test_what_a_spoken_version_registered_is_read(version: int) -> None:
    kept = json.loads((HERE / f"version_{version}.json").read_text())["redis"]["Registration"]
    registration = msgspec.json.decode(kept, type=Registration)
    assert holds(msgspec.to_builtins(registration), json.loads(kept))


def test_this_version_is_kept_as_it_is_written() -> None:
    assert json.loads((HERE / f"version_{WIRE_VERSION}.json").read_text()) == written()


@pytest.mark.parametrize("link", UNIONS)
def test_a_router_reads_what_a_later_version_adds_to_a_message(link: str) -> None:
    codec, union = UNIONS[link]
    for kind in kinds(union).values():
        message = sample(kind)
        plain: Any = msgspec.msgpack.decode(codec.encode(message))
        assert codec.decode(msgspec.msgpack.encode({**plain, "later": [1]})) == message


def test_routers_speak_the_last_two_versions() -> None:
    assert SPOKEN_VERSIONS == (WIRE_VERSION, WIRE_VERSION - 1)


def holds(whole: Any, part: Any) -> bool:
    """Whether nothing of `part` is missing or changed; arrays may have grown at their end."""
    if isinstance(part, dict):
        return all(key in whole and holds(whole[key], value) for key, value in part.items())
    if isinstance(part, list | tuple):
        return len(whole) >= len(part) and all(map(holds, whole, part))
    return bool(whole == part)
