"""The session that a request says it is of: its workers are kept while the load allows."""

import hashlib
import re
from collections.abc import Mapping

from router.api.errors import ApiError

SESSION_HEADER = "x-session-id"
MAX_SESSION_BYTES = 256
_PRINTABLE = re.compile(rb"[!-~]+")


def session_of(headers: Mapping[bytes, bytes], *, client: str) -> str:
    """ "" without one. Sessions of different clients never meet, whatever they are called. ApiError
    400."""
    given = headers.get(SESSION_HEADER.encode())
    if given is None:
        return ""
    if len(given) > MAX_SESSION_BYTES or not _PRINTABLE.fullmatch(given):
        rule = f"must be 1 to {MAX_SESSION_BYTES} printable ASCII characters without spaces"
        raise ApiError(400, f"{SESSION_HEADER}: {rule}", param=SESSION_HEADER)
    return hashlib.blake2b(client.encode() + b"\0" + given, digest_size=16).hexdigest()
