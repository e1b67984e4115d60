import pytest

from decode_worker.settings import DecodeSettings
from kvtransfer import planes
from kvtransfer.names import DEVICE_TRANSPORTS, HOST_TRANSPORTS, in_host
from prefill_worker.settings import PrefillSettings
from protocol.errors import SettingsError
from protocol.settings import load


def test_every_name_is_of_a_plane() -> None:
    assert set(planes.KNOWN) == {"memory", *DEVICE_TRANSPORTS, *HOST_TRANSPORTS}
    assert in_host(",".join(HOST_TRANSPORTS)) == ",".join(HOST_TRANSPORTS)


@pytest.mark.parametrize("settings", [PrefillSettings, DecodeSettings])
@pytest.mark.parametrize(
    ("listed", "says"),
    [("", "of shm"), ("pigeon", "of shm"), ("tcp,", "of shm"), ("tcp,tcp", "one transport twice")],
)
def test_a_worker_does_not_start_with_transports_that_are_none(
    settings: type[PrefillSettings | DecodeSettings], listed: str, says: str
) -> None:
    with pytest.raises(SettingsError, match=f"transports: .*{says}"):
        load(settings, ["--model", "m", "--transports", listed])


def test_workers_take_transports_in_the_order_given() -> None:
    settings = load(DecodeSettings, ["--model", "m", "--transports", "tcp,shm"])
    assert settings.transports == "tcp,shm"
