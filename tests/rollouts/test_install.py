"""The chart as it is, run as pods."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from support.pods.chart import rendered
from support.pods.cluster import pods
from support.pods.image import image_of, kernels_built_ahead
from support.pods.load import ask, client_of

pytestmark = pytest.mark.system


def test_a_chat_is_prefilled_in_one_pod_and_decoded_in_another(tmp_path: Path) -> None:
    async def test() -> None:
        image = replace(image_of(), kernels=kernels_built_ahead(tmp_path / "kernels"))
        async with pods(tmp_path, lambda _: image) as cluster:
            cluster.apply(rendered())
            await cluster.rolled_out()
            url = f"http://{cluster.address_of('demo-baton')}:8000"
            async with client_of(url) as client:
                told = await ask(client, "tiny", "How do I sharpen a knife?", max_tokens=24)
            print(told)
            assert not told.failure, told
            assert "prefill" in told.route
            assert [pod.num_restarts for pod in cluster.pods] == [0] * len(cluster.pods)

    asyncio.run(test())
