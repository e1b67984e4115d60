"""One file over HTTP, from where it was left, and checked.

Bytes are written at their place and a file is never shortened: where two fetch into one folder all
the same, because its file system's locks reach no further than a machine, both write the same.
"""

import errno
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from controlplane.fetch.digests import FileDigest
from controlplane.fetch.listing import Listing, RemoteFile
from protocol.errors import BatonError, CheckpointError
from protocol.process.backoff import Backoff

CONNECT_S, SILENT_S = 10.0, 60.0
"""A server that sends nothing for so long is given up, and asked again."""
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
log = logging.getLogger(__name__)


class NoRoom(BatonError):
    """The cache's file system is full."""


class WrongDigest(BatonError):
    """The bytes are not those that were promised. They are gone."""


class _Interrupted(Exception):
    """A connection that may be tried again."""


class Downloads:
    """Fetches files of one listing; threads may share it."""

    def __init__(
        self,
        client: httpx.Client,
        listing: Listing,
        *,
        retries: int,
        note: Callable[[int], None] = lambda num_bytes: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`note` is told of bytes as they come, from any thread."""
        self._client = client
        self._listing = listing
        self._retries = retries
        self._note = note
        self._sleep = sleep
        self.gave_up = threading.Event()
        """Set by whoever failed: the others stop at their next chunk."""

    def fetch(self, file: RemoteFile, target: Path) -> None:
        """`target` becomes the file, as its digest says. Raises CheckpointError, NoRoom,
        WrongDigest."""
        failures, delay_s = 0, 0.0
        while True:
            had = _size(target)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._try(file, target, had)
                return
            except WrongDigest:
                if not had:
                    raise
                log.warning("fetched again from its beginning", extra={"file": file.name})
            except _Interrupted as error:
                failures = 1 if _size(target) > had else failures + 1
                if failures > self._retries:
                    raise CheckpointError(
                        f"{file.where}: {error}; what has come is kept: try again when the server "
                        "can be reached"
                    ) from error
                delay_s = Backoff().delay_s(previous_s=delay_s, lived_s=0.0)
                told = {"file": file.name, "why": str(error), "again_in_s": round(delay_s, 1)}
                log.warning("connection failed", extra=told)
                self._sleep(delay_s)
            except OSError as error:
                raise cannot_write(error, target) from error

    def _try(self, file: RemoteFile, target: Path, had: int) -> None:
        if file.num_bytes is not None and had >= file.num_bytes:
            self._check(file, target, file.num_bytes)
            return
        headers = {**dict(self._listing.headers), "accept-encoding": "identity"}
        if had:
            headers["range"] = f"bytes={had}-"
        try:
            with self._client.stream("GET", file.url, headers=headers) as answer:
                self._receive(file, target, had, answer)
        except (httpx.TransportError, httpx.TooManyRedirects) as error:
            raise _Interrupted(_line(error)) from error

    def _receive(self, file: RemoteFile, target: Path, had: int, answer: httpx.Response) -> None:
        status = answer.status_code
        if status == 416:  # nothing lies behind what we have: it is whole, or another file
            self._check(file, target, had)
            return
        if status in _RETRIED:
            raise _Interrupted(f"HTTP {status}")
        if status not in (200, 206):
            raise CheckpointError(f"{file.where}: HTTP {status}; {self._listing.remedy}")
        start = had if status == 206 else 0
        said = answer.headers.get("content-range", "").partition("-")[0]
        if status == 206 and said != f"bytes {start}":
            raise CheckpointError(f"{file.where}: asked for bytes from {start} on, got {said!r}")
        length = answer.headers.get("content-length", "")
        said_bytes = [start + int(length)] if length.isdigit() else []
        said_bytes += [] if file.num_bytes is None else [file.num_bytes]
        if not said_bytes:
            raise CheckpointError(f"{file.where}: the server says no length; serve plain files")
        num_bytes = min(said_bytes)
        digest = FileDigest(file.digest.partition(":")[0], num_bytes=num_bytes)
        digest.add_file(target, start)
        with _opened(file, target, start) as stream:
            for chunk in first_bytes(answer.iter_raw(), num_bytes - start):  # a kill loses none
                if self.gave_up.is_set():
                    raise CheckpointError(f"{file.name}: given up, since another file failed")
                _write(stream, chunk)
                digest.add(chunk)
                self._note(len(chunk))
            end = stream.tell()
        if end < num_bytes:
            raise _Interrupted(f"the connection ended at byte {end} of {num_bytes}")
        _compare(file, target, digest, size=_size(target), expected=num_bytes)

    def _check(self, file: RemoteFile, target: Path, num_bytes: int) -> None:
        """Of a file that has all its bytes already."""
        digest = FileDigest(file.digest.partition(":")[0], num_bytes=num_bytes)
        if not target.exists():
            target.touch()
        digest.add_file(target, num_bytes)
        _compare(file, target, digest, size=_size(target), expected=num_bytes)


def _opened(file: RemoteFile, target: Path, start: int) -> io.FileIO:
    """To be written from `start` on. One that is read-only was finished once, perhaps by another
    user, and has lost its end since: raises WrongDigest, and it begins anew."""
    try:
        stream = target.open("r+b" if target.exists() else "xb", buffering=0)
    except PermissionError:
        target.unlink(missing_ok=True)
        if start:
            raise WrongDigest(f"{file.where}: has lost its end") from None
        stream = target.open("xb", buffering=0)
    stream.seek(start)
    return stream


def _write(stream: io.FileIO, chunk: bytes) -> None:
    """All of it: a full disk may take a part, and says so at the next."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[stream.write(rest) :]


def _compare(
    file: RemoteFile, target: Path, digest: FileDigest, *, size: int, expected: int
) -> None:
    kind, _, promised = file.digest.partition(":")
    found = digest.hex()
    if found == promised and size == expected:
        return
    target.unlink(missing_ok=True)
    is_longer = found == promised
    what = f"{size} bytes, not {expected}" if is_longer else f"{found[:16]}, not {promised[:16]}"
    name = "SHA-256" if kind == "sha256" else "digest as git counts it"
    raise WrongDigest(
        f"{file.where}: its {name} is {what}; what came is removed: fetch again, and if it is so "
        "again, the file, its list or a proxy between is at fault"
    )


def first_bytes(chunks: Iterator[bytes], num_bytes: int) -> Iterator[bytes]:
    """So many bytes, whatever a server sends beyond."""
    for chunk in chunks:
        yield chunk[:num_bytes]
        num_bytes -= len(chunk)
        if num_bytes <= 0:
            return


def cannot_write(error: OSError, target: Path) -> BatonError:
    """What to raise in its place: NoRoom for a full file system."""
    if error.errno in _FULL:
        return NoRoom(f"{target.name}: {error.strerror}")
    return CheckpointError(f"{target}: cannot be written: {error.strerror or error}")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
