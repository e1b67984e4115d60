"""The processes of one router, asked over sockets in a folder that is theirs alone.

A process listens there once it serves; one that does not answer in time is left out.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from router.processes.questions import Question, to_question

ANSWER_S = 1.0
"""A process that is not about to end answers within some milliseconds."""
MAX_QUESTION_BYTES = 4096
"""A request's id has 128 characters at most."""
MAX_ANSWER_BYTES = 64 << 20
_UNANSWERABLE = (
    OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError,
    msgspec.MsgspecError,
)  # fmt: skip
Answer = Callable[[Question], Awaitable[bytes]]
log = logging.getLogger("baton.siblings")


def socket_of(folder: Path, process: int) -> Path:
    """Where that process listens while it serves."""
    return folder / f"{process}.sock"


class Siblings:
    """The other processes, to process number `process`."""

    def __init__(self, folder: Path, *, process: int) -> None:
        self._folder = folder
        self.process = process

    async def ask(self, question: Question) -> dict[int, bytes]:
        """The answers by the number of the process."""
        others = {int(path.stem): path for path in self._folder.glob("*.sock")}
        others.pop(self.process, None)
        said = msgspec.json.encode(question)
        async with asyncio.TaskGroup() as tasks:
            asked = {
                process: tasks.create_task(_ask(others[process], said), name=f"ask {process}")
                for process in sorted(others)
            }
        answers = {process: task.result() for process, task in asked.items()}
        return {process: answer for process, answer in answers.items() if answer is not None}

    @asynccontextmanager
    async def answering(self, answer: Answer) -> AsyncIterator[None]:
        """Answers the others while the block runs."""
        path = socket_of(self._folder, self.process)
        path.unlink(missing_ok=True)  # of one that was killed
        accept = _Answering(answer).accept
        server = await asyncio.start_unix_server(accept, path, limit=MAX_QUESTION_BYTES)
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)


class _Answering:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                question = to_question.decode(await reader.readuntil(b"\n"))
                writer.write(await self._answer(question))
                writer.write_eof()
                await writer.drain()
        except _UNANSWERABLE as error:
            remedy = "none if a process is just ending, else report it"
            log.warning("sibling not answered", extra={"why": repr(error), "remedy": remedy})
        finally:
            writer.close()


async def _ask(path: Path, question: bytes) -> bytes | None:
    """None: it does not answer."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(question + b"\n")
                return await _read_all(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None


async def _read_all(reader: asyncio.StreamReader) -> bytes | None:
    answer = bytearray()
    while part := await reader.read(1 << 16):
        answer += part
        if len(answer) > MAX_ANSWER_BYTES:
            return None
    return bytes(answer) or None
