"""What `baton fetch` can be told."""

import re
from pathlib import Path

import httpx
from pydantic import Field, field_validator

from controlplane.fetch.listing import is_address, shown
from protocol.process.settings import CommandSettings


class FetchSettings(CommandSettings):
    """Fetches a model into a cache, once, and prints its folder there. A folder that is there
    already, such as that of a claim or of the node, is only looked at."""

    model: str
    """What to fetch: `ORG/NAME[@REVISION]` on the hub, the address of a list of files with their
    SHA-256 as `sha256sum` prints it (`https://HOST/FOLDER/SHA256SUMS`), or a folder. An address
    with a name and a password in it is better set as BATON_MODEL than as a flag, which other users
    of the machine can read."""
    cache: Path = Path("/cache")
    """Where models lie, a folder each: MODEL@REVISION. Only this command writes there. Several
    machines may share it; its file system should know `flock`."""
    name: str = Field(default="", pattern=r"^([A-Za-z0-9][\w.-]*(/[\w.-]+)?)?$")
    """Of a model that is fetched by address: its name in the cache and in the API. Empty: that of
    the folder in the address."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Of the list at that address: nothing but this list is taken. Empty: whatever is there, which
    trusts the server and the way to it."""
    retries: int = Field(default=8, ge=0, le=1000)
    """How often in a row a connection may fail before anything came over it. The next `baton
    fetch` goes on where this one ended."""

    @field_validator("model")
    @classmethod
    def _something(cls, value: str) -> str:
        if not value.strip() or re.search(r"\s", value):
            raise ValueError("must be a name, an address or a folder, without spaces")
        if is_address(value) and not _is_sound(value):
            raise ValueError("must be an address: https://HOST/FOLDER/SHA256SUMS")
        return value


def _is_sound(address: str) -> bool:
    try:
        url, _ = httpx.URL(address), shown(address)
    except (httpx.InvalidURL, ValueError):
        return False
    return url.scheme in ("http", "https") and bool(url.host)
