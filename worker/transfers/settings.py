"""Settings of moving KV, which prefill and decode workers have in common."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from kvtransfer.transport_names import listed
from protocol.process.settings import WorkerSettings

MAX_FOLDER_BYTES = 64


class TransferSettings(WorkerSettings):
    """Both kinds fetch and lend: a prompt's KV, and prefixes from each other's caches."""

    lease_ttl_s: float = Field(default=6.0, gt=0)
    """Blocks that are lent wait this long for a sign of life from who fetches them: three of its
    renewals. What a fetcher asks for when it renews; a source may grant less."""
    kv_port: int = Field(default=0, ge=0, le=65532)
    """First of the ports that other workers fetch KV by: on it they ask, and on the next, the
    second and the third after it `tcp`, `ucx` and `nccl` move blocks. 0: any free ones; for network
    policies and meshes, which want to know."""
    kv_help_copy: Literal["auto", "always", "never"] = "auto"
    """Whether this worker copies along when a decode worker of the same host fetches over shared
    memory. Auto: while a core is idle: two copy faster than one, but the model comes first."""
    kv_socket_folder: str = ""
    """Folder of the unix sockets by which `cuda_ipc` and `shm` are reached on this host. Empty:
    abstract ones, which reach within one network namespace. Containers with others of their own,
    such as pods of a node, share a folder, mounted at one path, and one user. It is there already,
    and its path at most 64 bytes long: a socket's may have 107."""
    allow_fallback: bool = True
    """Use the next of `transports` when the first cannot be had; said in the log and in beats."""
    kv_spin_us: float = Field(default=0.0, ge=0, le=10_000)
    """Microseconds that the transfer thread looks for news without sleeping after it was busy,
    while fetches run: a fetch then ends sooner by the time that a thread takes to wake, for a
    core. 0: it sleeps at once, because the model needs the cores more."""
    tcp_lanes: int = Field(default=0, ge=0, le=16)
    """TCP connections to each source. 0: one within a host, four between hosts, where each has a
    congestion window of its own."""
    max_pulls: int = Field(default=8, ge=0, le=1024)
    """Prefixes that are fetched from other workers' caches at once, where routers say that this is
    cheaper than to compute them; what is beyond is computed. 0: none ever. More share one link."""
    pull_timeout_s: float = Field(default=3.0, gt=0, le=10)
    """Longest time that such a prefix may take, or what computing it would if that is less: what
    has not come by then is computed. A stopped peer costs this once."""
    lend_prefixes: bool = True
    """Lend other workers what the prefix cache has, a quarter of the pool at most at a time."""

    @field_validator("transports")
    @classmethod
    def _known_transports(cls, value: str) -> str:
        return listed(value)

    @field_validator("kv_socket_folder")
    @classmethod
    def _folder_for_sockets(cls, value: str) -> str:
        if not value:
            return value
        if not value.startswith("/") or len(os.fsencode(value)) > MAX_FOLDER_BYTES:
            raise ValueError(f"must be an absolute path of at most {MAX_FOLDER_BYTES} bytes")
        if not Path(value).is_dir() or not os.access(value, os.W_OK | os.X_OK):
            raise ValueError("must be a folder that is there and that this user may write")
        return value
