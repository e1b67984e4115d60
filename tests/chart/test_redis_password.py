"""The bundled Redis with a password: the chart's own command, a real shell and a real server."""

import os
import subprocess
from pathlib import Path

import pytest
from redis import AuthenticationError, Redis
from redis import ConnectionError as RedisConnectionError
from support.chart import container, deployment
from support.eventually import eventually
from support.redis_server import free_port

from controlplane.local.embedded_redis import find_server

PASSWORD = "a \"strange\\ one\" $(id) 'quoted' %s"


@pytest.mark.system
def test_whatever_the_password_is_it_opens_redis_and_nothing_else_does(tmp_path: Path) -> None:
    told = container(deployment("redis", redis={"auth": {"existingSecret": "pw"}}))
    shell, flag, script = told["command"]
    port = free_port()
    script = script.replace("/tmp", str(tmp_path)).replace("--port 6379", f"--port {port}")
    path = f"{find_server().parent}:{os.environ['PATH']}"
    env = {"PATH": path, "REDISCLI_AUTH": PASSWORD}
    pod = subprocess.Popen([shell, flag, script], env=env, stdout=subprocess.DEVNULL)
    try:
        client = Redis(port=port, password=PASSWORD)
        eventually(lambda: _answers(client), 30, "redis-server answers")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with pytest.raises(AuthenticationError):
            Redis(port=port).ping()
        command = Path(f"/proc/{pod.pid}/cmdline").read_bytes().decode()
        assert "redis-server" in command and "strange" not in command
    finally:
        pod.kill()
        pod.wait()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except AuthenticationError:
        raise
    except RedisConnectionError:
        return False
