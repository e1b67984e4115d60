"""`baton fetch`: a model into a cache, by whoever comes first; the others wait for it.

Prints the folder, which is what `--model` of a worker takes. Killed at any time it goes on where it
was; nothing that is not whole is ever at the place of a model.
"""

import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx

from controlplane.fetch.cache import ModelCache, is_commit
from controlplane.fetch.download import (
    CONNECT_S,
    SILENT_S,
    Downloads,
    NoRoom,
    cannot_write,
    first_bytes,
)
from controlplane.fetch.listing import (
    MAX_LIST_BYTES,
    Listing,
    RemoteFile,
    is_address,
    name_in,
    of_hub,
    of_list,
    shown,
)
from controlplane.fetch.settings import FetchSettings
from protocol.errors import BatonError, CheckpointError
from protocol.process.logs import configure_logging
from protocol.process.model_folder import HubSilent, model_on_hub, resolve_model, split_name
from protocol.process.settings import load

NUM_CONNECTIONS = 4
"""A hub's servers send 50 to 200 MB/s over one."""
SAY_S = 5.0
BRANCH = "main"
log = logging.getLogger(__name__)


def fetch(argv: Sequence[str]) -> None:
    """Raises SettingsError, CheckpointError, NoRoom, WrongDigest: a line each."""
    settings = load(FetchSettings, argv, prog="baton fetch")
    configure_logging(process="fetch")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs addresses, signatures and all
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    os.umask(0o002)  # another user of our group may go on
    began_s = time.monotonic()
    folder = fetched_folder(settings)
    seconds = round(time.monotonic() - began_s, 3)
    log.info("fetched", extra={"folder": str(folder), "phase": "fetch", "seconds": seconds})
    sys.stdout.write(f"{folder}\n")


def fetched_folder(settings: FetchSettings) -> Path:
    """Where the model lies now."""
    if is_address(settings.model):
        with _client() as client:
            return _by_address(settings, client)
    path = Path(settings.model).expanduser()
    if path.exists() or settings.model.startswith(("/", ".", "~")):
        return resolve_model(path).path
    with _client() as client:
        return _by_name(settings, client)


def _by_name(settings: FetchSettings, client: httpx.Client) -> Path:
    (name, revision), cache = split_name(settings.model), ModelCache(settings.cache)
    if is_commit(revision) and (there := cache.whole(name, str(revision))) is not None:
        return there
    asked = revision or BRANCH
    try:
        listing = of_hub(model_on_hub(settings.model))
    except HubSilent as error:
        return _kept(cache, name, asked, why=str(error))
    return _into(cache, listing, asked, client=client, settings=settings)


def _by_address(settings: FetchSettings, client: httpx.Client) -> Path:
    url, where, cache = settings.model, shown(settings.model), ModelCache(settings.cache)
    name = settings.name or name_in(url)
    if settings.sha256 and cache.whole(name, settings.sha256[:40]) is not None:
        return cache.link(name, BRANCH, settings.sha256[:40])
    try:
        status, text = _beginning(client, url, MAX_LIST_BYTES + 1)
    except httpx.HTTPError as error:
        return _kept(cache, name, BRANCH, why=f"{where} cannot be reached: {error}")
    if status >= 500:
        return _kept(cache, name, BRANCH, why=f"{where}: HTTP {status}")
    if status != 200 or len(text) > MAX_LIST_BYTES:
        size = f"at least {len(text)}" if len(text) > MAX_LIST_BYTES else f"{len(text)}"
        raise CheckpointError(
            f"{where}: HTTP {status}, {size} bytes; give the address of a list as sha256sum prints "
            f"it, of at most {MAX_LIST_BYTES >> 20} MiB"
        )
    listing = of_list(url, text, name=name)
    if settings.sha256 and not settings.sha256.startswith(listing.revision):
        raise CheckpointError(
            f"{where}: is not the list of --sha256 {settings.sha256[:16]}..., but "
            f"{listing.revision[:16]}...; see which of them is right"
        )
    return _into(cache, listing, BRANCH, client=client, settings=settings)


def _beginning(client: httpx.Client, url: str, num_bytes: int) -> tuple[int, bytes]:
    """The status of an address, and no more than so many bytes of what it has."""
    with client.stream("GET", url, headers={"accept-encoding": "identity"}) as answer:
        return answer.status_code, b"".join(first_bytes(answer.iter_raw(), num_bytes))


def _kept(cache: ModelCache, name: str, asked: str, *, why: str) -> Path:
    """What the cache has of it, when nobody can be asked."""
    if (there := cache.whole(name, asked)) is None:
        raise CheckpointError(
            f"{name}@{asked}: {why}, and the cache {cache.folder} does not have it; fetch it once "
            "where the network is, or give a folder"
        )
    log.warning("taken from the cache unasked", extra={"why": why, "folder": str(there)})
    return there


def _into(
    cache: ModelCache, listing: Listing, asked: str, *, client: httpx.Client,
    settings: FetchSettings,
) -> Path:  # fmt: skip
    model, revision = listing.model, listing.revision
    source = shown(settings.model) if is_address(settings.model) else settings.model
    cache.open()
    try:
        with cache.held(model, revision) as partial:
            if cache.whole(model, revision) is None:
                cache.begin(partial, cache.entry(model, revision))
                _fill(partial, listing, client=client, retries=settings.retries)
                facts = {"source": source}
                cache.finish(partial, model=model, revision=revision, facts=facts)
            return cache.link(model, asked, revision)
    except NoRoom as error:
        raise _no_room(cache, listing, str(error)) from error
    except OSError as error:
        why = cannot_write(error, cache.folder)
        raise (_no_room(cache, listing, str(why)) if isinstance(why, NoRoom) else why) from error


def _fill(partial: Path, listing: Listing, *, client: httpx.Client, retries: int) -> None:
    progress = _Progress(listing.model)
    downloads = Downloads(client, listing, retries=retries, note=progress.note)
    _fetch_all(downloads, listing.files, partial, progress)
    _fetch_all(downloads, listing.more(partial), partial, progress)
    listing.check(partial)


def _fetch_all(
    downloads: Downloads, files: Sequence[RemoteFile], partial: Path, progress: "_Progress"
) -> None:
    """A few at a time. Raises what the first to fail raised, when all have stopped."""
    progress.expect(_check_room(partial, files))

    def fetch_one(file: RemoteFile) -> BatonError | None:
        try:
            downloads.fetch(file, partial / file.name)
        except BatonError as error:
            if downloads.gave_up.is_set():
                return None
            downloads.gave_up.set()
            return error
        return None

    with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="fetch") as threads:
        failed = [error for error in threads.map(fetch_one, files) if error is not None]
    if failed:
        raise failed[0]


def _check_room(partial: Path, files: Sequence[RemoteFile]) -> int:
    """Bytes still to come, as far as sizes are known. Raises NoRoom before the first of them."""
    needed = sum(one.num_bytes or 0 for one in files)
    for one in files:
        with suppress(OSError):
            needed -= (partial / one.name).stat().st_size
    if needed > shutil.disk_usage(partial).free:
        raise NoRoom(f"{_size(needed)} are still to come")
    return max(0, needed)


def _no_room(cache: ModelCache, listing: Listing, why: str) -> NoRoom:
    free = _size(cache.free_bytes())
    return NoRoom(
        f"{listing.model}@{listing.revision}: no room in the cache {cache.folder}: {why}, {free} "
        "are free; make room there, or take a larger volume: what has come is kept"
    )


def _client() -> httpx.Client:
    """Proxies as the environment says."""
    timeout = httpx.Timeout(SILENT_S, connect=CONNECT_S)
    return httpx.Client(timeout=timeout, follow_redirects=True)


class _Progress:
    """Says every few seconds how far a fetch is; from any thread."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._began_s = self._said_s = time.monotonic()

    def expect(self, num_bytes: int) -> None:
        self._total += num_bytes

    def note(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            now_s = time.monotonic()
            if now_s < self._said_s + SAY_S:
                return
            self._said_s, done = now_s, self._done
        speed = f"{done / 1e6 / (now_s - self._began_s):.1f} MB/s"
        told = {"model": self._model, "done": done, "total": self._total, "speed": speed}
        log.info("fetching", extra=told)


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
