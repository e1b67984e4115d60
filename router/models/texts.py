"""The texts that the workers' models need, asked of a worker once and kept read.

A text is known by its digest: bytes of another are refused, whoever sent them, and the next worker
is asked.
"""

import asyncio
import gc
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from protocol.errors import BatonError, CheckpointError, PeerLost, SettingsError, WireError
from protocol.ids import WorkerId
from protocol.messages import AskText, TextPart
from protocol.process.metrics import RouterMetrics
from protocol.text.text_files import MAX_ARCHIVE_BYTES, MAX_PART_BYTES, TextFiles
from router.models.kept_texts import KeptTexts
from router.models.text_reading import ReadingRules, ReadText, read_text
from router.workers.registry import Registry
from router.workers.worker import KnownWorker

PART_S = 5.0
"""For a part to come, after which another worker is asked: 1 MiB at 2 Mbit/s."""
RETRY_S, MAX_RETRY_S = 0.1, 5.0
"""Between two rounds of asking, twice as long each time."""
MAX_PARTS = MAX_ARCHIVE_BYTES // MAX_PART_BYTES
NUM_UNUSED = 8
"""Texts that no worker has are kept read, in case one comes again."""
log = logging.getLogger("baton.models")


class Texts:
    """In the event loop. `changed` is called when one can be used, or cannot be read."""

    def __init__(
        self,
        registry: Registry,
        *,
        rules: ReadingRules,
        kept: KeptTexts,
        metrics: RouterMetrics,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._rules = rules
        self._kept = kept
        self._fetches = metrics.text_fetches
        metrics.texts.set_function(lambda: len(self._read))
        self.changed = changed
        self._read: dict[str, ReadText] = {}
        self._refused: dict[str, str] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._wanted: frozenset[str] = frozenset()
        self._waiting: dict[tuple[WorkerId, str, int], asyncio.Future[TextPart]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        registry.text_listeners.append(self._accept_part)

    def find(self, digest: str) -> ReadText | None:
        """None while it is not here."""
        return self._read.get(digest)

    def why_missing(self, digest: str) -> str:
        """ "" of one that `find` finds."""
        if digest in self._read:
            return ""
        return self._refused.get(digest, "its text is on the way")

    async def run(self) -> None:
        """Fetches what is wanted, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                self._begin()
                await asyncio.Event().wait()
            finally:
                self._tasks = None  # what is cancelled now is not begun again

    def want(self, digests: Iterable[str]) -> None:
        """These from now on, and no others."""
        self._wanted = frozenset(digests)
        for digest in self._fetching.keys() - self._wanted:
            self._fetching[digest].cancel()
        for digest in self._wanted & self._read.keys():
            self._read[digest] = self._read.pop(digest)  # the last used last
        unused = [digest for digest in self._read if digest not in self._wanted]
        for digest in unused[: max(0, len(unused) - NUM_UNUSED)]:
            del self._read[digest]
        for digest in self._refused.keys() - self._wanted:
            del self._refused[digest]
        self._begin()

    def _begin(self) -> None:
        if self._tasks is None:
            return
        for digest in self._wanted - self._read.keys() - self._refused.keys():
            if digest not in self._fetching:
                task = self._tasks.create_task(self._fetch(digest), name=f"text {digest}")
                self._fetching[digest] = task
                task.add_done_callback(partial(self._fetched, digest))

    def _fetched(self, digest: str, _: asyncio.Task[None]) -> None:
        self._fetching.pop(digest, None)
        self._begin()  # it may be wanted again since it was cancelled

    async def _fetch(self, digest: str) -> None:
        """Until it is read, or found to be of no use."""
        try:
            self._read[digest] = await self._found(digest)
            gc.freeze()  # else each full collection looks through all that was loaded
            log.info("text read", extra={"digest": digest})
        except (CheckpointError, SettingsError) as error:
            self._fetches.labels("refused").inc()
            self._refused[digest] = f"its text cannot be used: {error}"
            remedy = "correct the model's files, or this router's formats, and start anew"
            log.error("text refused", extra={"digest": digest, "why": str(error), "remedy": remedy})
        self.changed()

    async def _found(self, digest: str) -> ReadText:
        if (folder := await asyncio.to_thread(self._kept.find, digest)) is not None:
            with suppress(CheckpointError):  # removed meanwhile, to make room
                kept = await asyncio.to_thread(read_text, folder, self._rules)
                self._fetches.labels("kept").inc()
                return kept
        pause_s = RETRY_S
        while True:
            for worker in self._workers_with(digest):
                if (read := await self._ask(worker, digest)) is not None:
                    return read
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_RETRY_S, 2 * pause_s)

    def _workers_with(self, digest: str) -> list[KnownWorker]:
        """Those that are ready first; they may be gone when their turn comes."""
        linked = (worker for worker in self._registry.workers if worker.connection is not None)
        has = [worker for worker in linked if worker.registration.text == digest]
        return sorted(has, key=lambda worker: not worker.is_ready)

    async def _ask(self, worker: KnownWorker, digest: str) -> ReadText | None:
        """None: it is gone, silent, or sent something else."""
        try:
            archive = await self._archive(worker, digest)
            files = await asyncio.to_thread(TextFiles.unpacked, archive, digest=digest)
        except (PeerLost, WireError, TimeoutError) as error:
            self._fetches.labels("lost").inc()
            why = str(error) or f"no part came within {PART_S} s"
            remedy = "none if the worker was lost; else look at its log"
            told = {"worker": worker.id, "digest": digest, "why": why, "remedy": remedy}
            log.warning("text not had", extra=told)
            return None
        read = await asyncio.to_thread(self._keep, files)
        self._fetches.labels("had").inc()
        return read

    def _keep(self, files: TextFiles) -> ReadText:
        try:
            folder = self._kept.keep(files)
        except (OSError, BatonError) as error:
            raise SettingsError(
                f"the router cannot keep text files: {error}; give it a folder that it may write "
                "by TMPDIR"
            ) from error
        return read_text(folder, self._rules)

    async def _archive(self, worker: KnownWorker, digest: str) -> bytes:
        first = await self._part(worker, digest, 0)
        if not 0 < first.num_parts <= MAX_PARTS:
            raise WireError(f"{worker.id} has {first.num_parts} parts of that text")
        parts = [first.data]
        for index in range(1, first.num_parts):
            parts.append((await self._part(worker, digest, index)).data)  # noqa: PERF401
        return b"".join(parts)

    async def _part(self, worker: KnownWorker, digest: str, index: int) -> TextPart:
        """One at a time, so that tokens on the same link wait for no more than one."""
        key = worker.id, digest, index
        part: asyncio.Future[TextPart] = asyncio.get_running_loop().create_future()
        self._waiting[key] = part
        try:
            asked = AskText(digest=digest, index=index)
            if not self._registry.post_message(worker.id, worker.epoch, asked):
                raise PeerLost(f"{worker.id} is gone")
            async with asyncio.timeout(PART_S):
                return await part
        finally:
            del self._waiting[key]

    def _accept_part(self, worker: KnownWorker, part: TextPart) -> None:
        waiting = self._waiting.get((worker.id, part.digest, part.index))
        if waiting is not None and not waiting.done():
            waiting.set_result(part)
