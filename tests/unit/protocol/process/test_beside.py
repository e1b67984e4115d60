import asyncio

import pytest

from protocol.process.run import beside

pytestmark = pytest.mark.anyio


async def work(said: list[str], error: Exception | None = None) -> None:
    said.append("began")
    if error is not None:
        raise error
    try:
        await asyncio.Event().wait()
    finally:
        said.append("ended")


async def test_it_runs_until_the_block_ends() -> None:
    said: list[str] = []
    async with beside(work(said), name="work"):
        await asyncio.sleep(0)
        assert said == ["began"]
    assert said == ["began", "ended"]


async def test_it_may_end_before() -> None:
    said: list[str] = []
    async with beside(work(said), name="work") as task:
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        assert said == ["began", "ended"]


async def test_its_error_ends_the_block_and_is_seen() -> None:
    with pytest.raises(KeyError, match="of the work"):
        async with beside(work([], KeyError("of the work")), name="work"):
            await asyncio.Event().wait()


async def test_an_error_of_the_block_is_raised_as_it_is() -> None:
    said: list[str] = []
    with pytest.raises(KeyError, match="of the block"):
        async with beside(work(said), name="work"):
            await asyncio.sleep(0)
            raise KeyError("of the block")
    assert said == ["began", "ended"]
