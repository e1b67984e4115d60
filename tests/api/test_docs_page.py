"""The page at `/docs` in a real browser that reaches nothing but this server."""

import asyncio
import shutil

import pytest
from support.api import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.long]
LIMIT_S = 120.0


async def test_a_browser_shows_every_path(bench: Bench) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no browser: apt-get install chromium")
    async with bench.serving() as url, asyncio.timeout(LIMIT_S):
        alone = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000")
        process = await asyncio.create_subprocess_exec(
            browser, *alone, "--dump-dom", f"{url}/docs",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        page = (await process.communicate())[0].decode()
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/cluster"):
        assert f'data-path="{path}"' in page
