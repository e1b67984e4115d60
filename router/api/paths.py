"""A request's path as the router knows it."""

import re

_SLASHES = re.compile("/{2,}")


def plain_path(given: str) -> str:
    """Without doubled and last slashes: a base URL with a slash too many is the commonest of
    mistakes. Request ids have their own."""
    if given.startswith(("/requests/", "/trace/")):
        return given
    return _SLASHES.sub("/", given).rstrip("/") or "/"
