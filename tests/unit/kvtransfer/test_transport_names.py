import pytest
from support import memory_plane

from decode_worker.settings import DecodeSettings
from kvtransfer.transport_names import DEVICE_TRANSPORTS, HOST_TRANSPORTS, chosen, listed
from kvtransfer.transports import planes
from prefill_worker.settings import PrefillSettings
from protocol.errors import SettingsError
from protocol.process.settings import load


def test_every_name_is_of_a_plane() -> None:
    assert set(planes.PLANES) == {memory_plane.NAME, *DEVICE_TRANSPORTS, *HOST_TRANSPORTS}
    assert listed(",".join(HOST_TRANSPORTS)) == ",".join(HOST_TRANSPORTS)


@pytest.mark.parametrize("settings", [PrefillSettings, DecodeSettings])
@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("ucx,nccl", "all of shm"),
        ("pigeon", "all of shm"),
        ("tcp,", "all of shm"),
        ("tcp,tcp", "one transport twice"),
    ],
)
def test_a_worker_does_not_start_with_transports_that_are_none(
    settings: type[PrefillSettings | DecodeSettings], names: str, says: str
) -> None:
    with pytest.raises(SettingsError, match=f"transports: .*{says}"):
        load(settings, ["--model", "m", "--transports", names])


def test_workers_take_transports_in_the_order_given() -> None:
    settings = load(DecodeSettings, ["--model", "m", "--transports", "tcp,shm"])
    assert settings.transports == "tcp,shm"


def test_each_kind_of_pool_has_its_own_transports() -> None:
    assert chosen("", on_device=True) == ("cuda_ipc", "nccl", "shm", "tcp")
    assert chosen("", on_device=False) == ("shm", "tcp")
    assert chosen("tcp", on_device=False) == ("tcp",)
    assert chosen("shm,tcp", on_device=True) == ("shm", "tcp")
    assert chosen("nccl,tcp", on_device=True) == ("nccl", "tcp")
    for names, on_device in (("shm,ucx", True), ("nccl", False), ("nccl,tcp", False)):
        with pytest.raises(SettingsError, match=f"transports: '{names}': the KV pool is"):
            chosen(names, on_device=on_device)
