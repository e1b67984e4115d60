"""Where a deployment's Redis is, who we are there, and what all our keys begin with. Pure."""

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = ("redis://", "rediss://", "unix://")
DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Of one deployment: another in the same database has another `prefix`."""

    url: str
    """`redis://`, `rediss://` or `unix://`, without a name or a password."""
    username: str = ""
    """Empty: Redis's default user."""
    password: str = field(default="", repr=False)
    ca: str = ""
    """File with the certificates of the authorities to trust. Empty: the system's."""
    prefix: str = ""

    @property
    def place(self) -> str:
        """`host:port`, or the path of a socket: for a person to read."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return parts.path
        host = parts.hostname or "localhost"
        return f"{f'[{host}]' if ':' in host else host}:{parts.port or DEFAULT_PORT}"


def read_address(url: str) -> RedisAddress:
    """The address that a person wrote, who may have put a name and a password into it. Raises
    ValueError, without the value, for what cannot be one of a Redis."""
    if not url.startswith(SCHEMES):
        raise ValueError("must start with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError("must be redis://HOST:PORT/NUMBER") from error
    who, at, place = parts.netloc.rpartition("@")
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        raise ValueError("its password must have %2F for /, %3F for ?, %23 for # and %40 for @")
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError("its port must be a number from 0 to 65535") from error
    if {"username", "password"} & {name for name, _ in parse_qsl(parts.query)}:
        raise ValueError("name and password go before the host, or into settings of their own")
    username, _, password = who.partition(":")
    return RedisAddress(
        url=url.replace(f"{who}@{place}", place, 1) if at else url,
        username=unquote(username),
        password=unquote(password),
    )
