"""The file of keys: what it says, and how its mistakes are told."""

import hashlib
import json
from typing import Any

import pytest

from router.tenants.api_key import ApiKey, key_digest
from router.tenants.key_file import read_keys
from router.tenants.key_ring import KeyRing

SECRET = "sk-" + "s" * 40


def read(*entries: object) -> tuple[ApiKey, ...]:
    return read_keys(json.dumps({"keys": entries}).encode())


def test_an_entry_of_a_key_and_a_tenant_limits_nothing() -> None:
    (key,) = read({"key": SECRET, "tenant": "acme"})
    assert key == ApiKey(digest=key_digest(SECRET.encode()), tenant="acme")


def test_all_terms_are_read() -> None:
    digest = hashlib.sha256(b"k").hexdigest()
    terms = {"weight": 2.5, "priority": 1, "most_urgent": -3, "requests_per_minute": 60}
    more = {"tokens_per_minute": 10_000, "max_in_flight": 4, "expires": "2030-01-01T00:00:00Z"}
    (key,) = read({"sha256": digest.upper(), "tenant": "acme"} | terms | more)
    assert key == ApiKey(
        digest=key_digest(b"k"), tenant="acme", weight=2.5, priority=1, most_urgent=-3,
        requests_per_minute=60, tokens_per_minute=10_000, max_in_flight=4, expires_at=1893456000.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"key": SECRET}, "$.keys[1]"),
        ({"tenant": "b"}, "$.keys[1]: needs either `key` or `sha256`"),
        ({"tenant": "b", "key": SECRET, "sha256": "0" * 64}, "needs either"),
        ({"tenant": "b", "key": "white space"}, "$.keys[1].key: must be printable"),
        ({"tenant": "b", "sha256": "abc"}, "$.keys[1].sha256: must be 64"),
        ({"tenant": "b", "key": SECRET, "weight": 0}, "$.keys[1].weight"),
        ({"tenant": "b", "key": SECRET, "weight": SECRET}, "$.keys[1].weight"),
        ({"tenant": "", "key": SECRET}, "$.keys[1].tenant"),
        ({"tenant": "b", "key": SECRET, "rpm": 3}, "rpm"),
        ({"tenant": "b", "key": SECRET, "most_urgent": 3}, "$.keys[1].most_urgent: 3: at most"),
        ({"tenant": "b", "key": SECRET, "expires": "2030-01-01T00:00:00"}, "$.keys[1].expires"),
        ({"tenant": "b", "key": "first"}, "$.keys[1]: is the same key as $.keys[0]"),
        ({"tenant": "a", "key": SECRET, "weight": 2}, "$.keys[1].weight: 2: $.keys[0] is of"),
        ([SECRET], "$.keys[1]"),
    ],
)
def test_a_mistake_is_told_by_its_place_and_without_a_key(entry: Any, told: str) -> None:
    with pytest.raises(ValueError) as raised:
        read({"tenant": "a", "key": "first"}, entry)
    assert told in str(raised.value)
    assert SECRET not in str(raised.value) and "first" not in str(raised.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"keys": {}}', b"\xff", b"[" * 5_000])
def test_what_is_no_such_file_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        read_keys(text)


def test_a_key_is_found_until_it_expires() -> None:
    ring = KeyRing(read({"key": "old", "tenant": "a", "expires": "1970-01-01T00:01:00Z"}))
    found = ring.find_key(b"old", now=59.9)
    assert found is not None and found.tenant == "a"
    assert ring.find_key(b"old", now=60.0) is None
    assert ring.find_key(b"", now=0.0) is None and ring.find_key(b"new", now=0.0) is None


def test_keys_are_replaced_as_a_whole() -> None:
    ring = KeyRing(read({"key": "old", "tenant": "a"}))
    ring.replace_keys(read({"key": "new", "tenant": "b"}))
    assert ring.find_key(b"old", now=0.0) is None and len(ring) == 1
    assert ring.num_tenants == 1


def test_priorities_are_counted_from_the_key_s_and_bounded_by_it() -> None:
    (key,) = read({"key": "k", "tenant": "a", "priority": 5, "most_urgent": 2})
    assert [key.priority_of(asked) for asked in (0, -1, -100, 3)] == [5, 4, 2, 8]


def test_no_salt_of_one_tenant_is_another_s() -> None:
    one, other = read({"key": "k", "tenant": "a"}, {"key": "l", "tenant": "a:1"})
    salts = {key.salt_of(asked) for key in (one, other) for asked in ("", "1", "1:", ":", "a")}
    assert len(salts) == 10
