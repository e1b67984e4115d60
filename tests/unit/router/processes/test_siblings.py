"""Processes of one router ask each other over real sockets."""

import asyncio
import socket
from collections.abc import Coroutine
from pathlib import Path

import pytest

from protocol.ids import RequestId
from router.processes import siblings
from router.processes.questions import AskMetrics, AskTraces, Question
from router.processes.siblings import Siblings, socket_of


async def echo(question: Question) -> bytes:
    return repr(question).encode()


def run(test: Coroutine[None, None, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(bounded())


def test_each_of_the_others_answers_and_oneself_is_not_asked(tmp_path: Path) -> None:
    async def test() -> None:
        first, second, third = (Siblings(tmp_path, process=number) for number in range(3))
        asked = AskTraces(request=RequestId("r\n1"))
        async with first.answering(echo), second.answering(echo), third.answering(echo):
            answer = repr(asked).encode()
            assert await second.ask(asked) == {0: answer, 2: answer}
        assert await second.ask(asked) == {}

    run(test())


def test_who_does_not_answer_in_time_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "ANSWER_S", 0.1)

    async def test() -> None:
        with socket.socket(socket.AF_UNIX) as stopped:
            stopped.bind(str(socket_of(tmp_path, 1)))
            stopped.listen()
            async with Siblings(tmp_path, process=2).answering(echo):
                found = await Siblings(tmp_path, process=0).ask(AskMetrics())
            assert list(found) == [2]

    run(test())


def test_one_that_was_killed_leaves_a_socket_that_nobody_minds(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(socket_of(tmp_path, 1)))
        asking, again = (Siblings(tmp_path, process=number) for number in range(2))
        assert await asking.ask(AskMetrics()) == {}
        async with again.answering(echo):
            assert list(await asking.ask(AskMetrics())) == [1]

    run(test())


@pytest.mark.parametrize("words", [b"nonsense\n", b'{"type":"shutdown"}\n', b"x" * 10_000, b""])
def test_what_is_no_question_gets_no_answer_and_costs_nobody_else_one(
    tmp_path: Path, words: bytes
) -> None:
    async def test() -> None:
        async with Siblings(tmp_path, process=1).answering(echo):
            reader, writer = await asyncio.open_unix_connection(socket_of(tmp_path, 1))
            writer.write(words)
            writer.write_eof()
            assert await _rest(reader) == b""
            writer.close()
            assert list(await Siblings(tmp_path, process=0).ask(AskMetrics())) == [1]

    run(test())


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:  # what it had not read is thrown away with the connection
        return b""
