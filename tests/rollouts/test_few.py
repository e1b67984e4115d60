"""Changes of a release under load: the few of them that every run of the tests makes."""

import asyncio
from pathlib import Path

import pytest
from support.pods.image import built_again
from support.pods.load import steady_load
from support.pods.release import PROMPTS, release

pytestmark = pytest.mark.system


def test_an_image_is_upgraded(tmp_path: Path) -> None:
    async def test() -> None:
        async with release(tmp_path) as up, steady_load(up.url, "tiny", PROMPTS) as load:
            await up.some_more(load)
            before = load.texts()
            up.images["2"] = built_again(up.images["1"], tmp_path / "image")
            up.upgrade(image={"tag": "2"})
            await up.cluster.rolled_out()
            await up.some_more(load)
            up.assert_nothing_failed(load, before)

    asyncio.run(test())
