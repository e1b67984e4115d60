"""A real control plane of Kubernetes on loopback: etcd, API server, controllers, scheduler.

Built by tests/cluster/build_control_plane.sh; CONTROL_PLANE names the folder. It is 1.20: what
newer servers do is not seen here.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from support.eventually import eventually
from support.kube.api import WITHIN_S, Api
from support.redis_server import free_ports

NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
TOKEN = "of-the-tests"
START_S = 120.0
END_S = 10.0


@dataclass(frozen=True, slots=True)
class ControlPlane:
    url: str
    ca: Path
    kubeconfig: Path

    @contextmanager
    def api(self) -> Iterator[Api]:
        """As somebody who may do everything."""
        key = {"authorization": f"Bearer {TOKEN}"}
        with httpx.Client(
            base_url=self.url, verify=str(self.ca), headers=key, timeout=WITHIN_S
        ) as client:
            yield Api(client)


def built_folder() -> Path | None:
    """Where the programs are; None: they were not built here."""
    folder = Path(os.environ.get("CONTROL_PLANE", "/nowhere"))
    return folder if all((folder / name).exists() for name in NAMES) else None


@contextmanager
def control_plane(programs: Path, folder: Path) -> Iterator[ControlPlane]:
    """One whose files lie in `folder` and whose processes end with this one."""
    port = free_ports(5)
    plane = ControlPlane(
        url=f"https://127.0.0.1:{port}",
        ca=folder / "certs" / "apiserver.crt",
        kubeconfig=folder / "kubeconfig",
    )
    _write_files(folder, plane)
    flags = _flags(folder, port, plane.kubeconfig)
    with ExitStack() as running:
        for name in NAMES[:2]:
            running.enter_context(_process(programs / name, flags[name], folder))
        eventually(lambda: _is_ready(plane), START_S, f"{plane.url} ready, see {folder}")
        for name in NAMES[2:]:
            running.enter_context(_process(programs / name, flags[name], folder))
        yield plane


def _write_files(folder: Path, plane: ControlPlane) -> None:
    key = ["openssl", "genrsa", "-out", str(folder / "accounts.key"), "2048"]
    subprocess.run(key, check=True, capture_output=True)
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,1,system:masters\n")
    context = {"name": "tests", "context": {"cluster": "tests", "user": "admin"}}
    cluster = {"server": plane.url, "certificate-authority": str(plane.ca)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [context],
        "current-context": "tests",
    }
    plane.kubeconfig.write_text(json.dumps(config))


def _flags(folder: Path, port: int, kubeconfig: Path) -> Mapping[str, list[str]]:
    etcd, peers, key = (
        f"http://127.0.0.1:{port + 1}",
        f"http://127.0.0.1:{port + 2}",
        "accounts.key",
    )
    here = ["--bind-address=127.0.0.1"]
    client = [*here, f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--port=0"]
    return {
        "etcd": [
            f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync",
            f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        ],
        "kube-apiserver": [
            *here, f"--etcd-servers={etcd}", "--advertise-address=127.0.0.1",
            f"--secure-port={port}", f"--cert-dir={folder / 'certs'}",
            f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/24", "--allow-privileged=true",
            f"--service-account-issuer=https://127.0.0.1:{port}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--endpoint-reconciler-type=none",
        ],
        # Its nodes' beats are nobody's here; the taint of a new node is still taken away.
        "kube-controller-manager": [
            *client, f"--secure-port={port + 3}", f"--cert-dir={folder / 'certs-controllers'}",
            f"--service-account-private-key-file={key}",
            "--node-monitor-grace-period=24h",
        ],
        "kube-scheduler": [
            *client, f"--secure-port={port + 4}", f"--cert-dir={folder / 'certs-scheduler'}",
        ],
    }  # fmt: skip


@contextmanager
def _process(program: Path, flags: list[str], folder: Path) -> Iterator[None]:
    command = ["setpriv", "--pdeathsig", "KILL", str(program), *flags]
    with (folder / f"{program.name}.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(END_S)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _is_ready(plane: ControlPlane) -> bool:
    try:
        with plane.api() as api:
            api.get("/api/v1/namespaces/default/serviceaccounts")
    except (httpx.HTTPError, OSError):  # its certificate is not there either, or half of it
        return False
    return True
