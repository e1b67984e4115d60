import pytest

from protocol.store.address import RedisAddress, read_address

ME = ("me", "it")


@pytest.mark.parametrize(
    ("url", "without", "username", "password"),
    [
        ("redis://h:6379/3", "redis://h:6379/3", "", ""),
        ("redis://:p%40ss%2F@h/0", "redis://h/0", "", "p@ss/"),
        (
            "rediss://me:it@[::1]:7/1?ssl_ca_certs=/c",
            "rediss://[::1]:7/1?ssl_ca_certs=/c",
            "me",
            "it",
        ),
        ("unix://me:it@/run/r.sock?db=1", "unix:///run/r.sock?db=1", "me", "it"),
        ("redis://", "redis://", "", ""),
    ],
)
def test_name_and_password_are_taken_out_of_an_address(
    url: str, without: str, username: str, password: str
) -> None:
    address = read_address(url)
    assert (address.url, address.username, address.password) == (without, username, password)
    assert not password or password not in repr(address)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:6379", "must start with redis://"),
        ("redis://h:nope/0", "its port must be a number"),
        ("redis://:a/b@h/0", "must have %2F for /"),
        ("redis://h/0?password=it", "before the host"),
        ("redis://:12#it@h", "must have %2F for /"),
        ("redis://:12?it@h", "must have %2F for /"),
        ("redis://:i\u2100t@h", "must be redis://HOST"),
    ],
)
def test_what_is_no_address_is_refused(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        read_address(url)
    assert url not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://h/0", "h:6379"),
        ("redis://[::1]:7000/0", "[::1]:7000"),
        ("unix:///run/r.sock?db=1", "/run/r.sock"),
        ("redis://", "localhost:6379"),
    ],
)
def test_a_place_is_what_a_person_looks_for(url: str, place: str) -> None:
    assert RedisAddress(url=url, username="me", password="it").place == place
