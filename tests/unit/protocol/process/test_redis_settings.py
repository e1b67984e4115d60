import pytest

from protocol.errors import SettingsError
from protocol.process.settings import ProcessSettings, load, load_or_exit
from protocol.store.address import RedisAddress

SECRET = "s3cret"


def test_all_parts_make_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_REDIS_PASSWORD", SECRET)
    flags = ["--redis", "redis://h/1", "--redis-username", "me", "--redis-prefix", "ns/release:"]
    assert load(ProcessSettings, flags).redis_address == RedisAddress(
        url="redis://h/1", username="me", password=SECRET, prefix="ns/release:"
    )


def test_a_secret_in_the_address_is_kept_where_nothing_shows_it() -> None:
    settings = load(ProcessSettings, ["--redis", f"redis://me:{SECRET}@h/1"])
    address = settings.redis_address
    assert (settings.redis, address.username, address.password) == ("redis://h/1", "me", SECRET)
    assert SECRET not in repr(settings) + repr(address)


def test_an_authority_is_of_the_address_whichever_way_either_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATON_REDIS", f"rediss://:{SECRET}@h/1")
    monkeypatch.setenv("BATON_REDIS_CA", "/ca.crt")
    address = load(ProcessSettings, []).redis_address
    assert (address.url, address.ca) == ("rediss://h/1", "/ca.crt")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--redis", f"redis://:{SECRET}@h", "--redis-password", SECRET + "2"), "give one of them"),
        (("--redis", f"redis://:{SECRET}/@h"), "redis: 'redis://h': its password must have %2F"),
        (("--redis-password", f"{SECRET}\n"), "redis_password: the value given: begins or ends"),
        (("--redis", f"redis://me@h/0?password=a {SECRET}"), "redis: 'redis://h/0': name and"),
        (("--redis", f"redis://:12#{SECRET}@h"), "redis: 'redis://h': its password must have %2F"),
        (("--redis", f"redis://:{SECRET}\u2100@h"), "redis: 'redis://h': must be redis://HOST"),
        (("--redys", f"redis://:{SECRET}@h"), "unknown setting: --redys redis://h"),
        (("--redys", f"redis://h?password={SECRET}"), "unknown setting: --redys redis://h"),
        (("--redis-prefix", "a*"), "redis_prefix: 'a*'"),
        (("--redis-ca", "/ca"), "redis_ca: '/ca': is for TLS: redis must start with rediss://"),
        (("--redis", "rediss://h?ssl_ca_certs=/a", "--redis-ca", "/b"), "give one of them"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(
    flags: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_or_exit(ProcessSettings, flags, prog="router")
    said = capsys.readouterr().err
    assert why in said
    assert SECRET not in said


def test_no_address_is_none() -> None:
    with pytest.raises(SettingsError, match="redis: ''"):
        load(ProcessSettings, ["--redis="])
