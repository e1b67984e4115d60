"""Who may speak to an API that is open to its own machine: not every web page its user visits.

A page can send requests to 127.0.0.1, and can have its own name resolve there. Browsers say where
a request comes from in `Origin` and `Host`; other clients send no foreign ones.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from protocol.process.machine import is_loopback
from router.api.errors import ApiError


def check_origin(
    headers: Mapping[bytes, bytes], names: Collection[str], *, pages: Collection[str] = ()
) -> None:
    """`names` are hosts besides this machine's own, `pages` origins that may read what is answered;
    `*`: all. Raises ApiError 403."""
    host = _host_of(b"//" + headers.get(b"host", b""))
    if host and not _is_address(host) and not _is_ours(host, names):
        raise _foreign("host", host)
    origin = headers.get(b"origin")
    if origin is not None and "*" not in pages and origin.decode("latin-1") not in pages:
        site = _host_of(origin)
        if site != host and not _is_ours(site, names):
            raise _foreign("origin", origin.decode("latin-1"))


def _is_ours(host: str, names: Collection[str]) -> bool:
    return is_loopback(host) or host in names


@lru_cache(maxsize=256)
def _host_of(url: bytes) -> str:
    try:
        return (urlsplit(url.decode("latin-1")).hostname or "").rstrip(".")
    except ValueError:
        return "?"


@lru_cache(maxsize=256)
def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _foreign(header: str, value: str) -> ApiError:
    names = "`hosts`" if header == "host" else "`hosts` or `cors_origins`"
    rule = f"{value[:100]!r} is not this machine; set an API key, or name it in {names}"
    return ApiError(403, f"{header}: {rule}", code=f"foreign_{header}", param=header)
