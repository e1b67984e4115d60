"""Checkpoints, a cluster and a Redis that system tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.cluster import Cluster
from support.redis_server import RedisServer, redis_server

from tools.make_checkpoint import Shape, make_checkpoint


@pytest.fixture(scope="session")
def slow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 M random parameters: prompts and answers take long enough to send a signal into."""
    path = tmp_path_factory.mktemp("checkpoints") / "slow"
    shape = Shape(hidden=512, layers=8, heads=8, kv_heads=2, mlp=1408, vocab=1024, context=2048)
    make_checkpoint(path, shape)
    return path


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a million random parameters: any wrong byte of KV changes what it says."""
    path = tmp_path_factory.mktemp("checkpoints") / "small"
    make_checkpoint(path, Shape(hidden=128, layers=3, mlp=256, vocab=1024, context=2048))
    return path


@pytest.fixture(scope="package")
def apart_cluster() -> Iterator[Cluster]:
    """The shipped model, prefill and decode apart, prompts in chunks, for those who only ask."""
    with Cluster(extra=["--local-prefill", "never", "--token-budget", "128"]) as up:
        yield up


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Of no weights: for fake workers."""
    return write_checkpoint(tmp_path / "fake")
