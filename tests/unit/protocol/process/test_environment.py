import pytest

from controlplane.cli.conversation import ChatSettings
from controlplane.cli.status import StatusSettings
from controlplane.doctor.doctor import DoctorSettings
from controlplane.fetch.settings import FetchSettings
from controlplane.local.settings import UpSettings
from controlplane.local.workers_settings import NodeSettings
from decode_worker.settings import DecodeSettings
from prefill_worker.settings import PrefillSettings
from protocol.errors import SettingsError
from protocol.process.environment import KNOWN, check_variables
from protocol.process.settings import CommandSettings
from router.settings import RouterSettings


def test_the_known_variables_are_the_fields_of_all_settings() -> None:
    every: tuple[type[CommandSettings], ...] = (
        *(RouterSettings, PrefillSettings, DecodeSettings),
        *(UpSettings, ChatSettings, StatusSettings, DoctorSettings),
        *(FetchSettings, NodeSettings),
    )
    fields = {
        name
        for settings in every
        for name, field in settings.model_fields.items()
        if field.alias is None  # it has no variable
    }
    assert fields == KNOWN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATON_SERVICE_HOST", "10.0.0.1"),
        ("BATON_REDIS_SERVICE_HOST", "10.0.0.1"),
        ("BATON_REDIS_SERVICE_PORT", "6379"),
        ("BATON_REDIS_SERVICE_PORT_REDIS", "6379"),
        ("BATON_REDIS_PORT", "tcp://10.0.0.1:6379"),
        ("BATON_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("BATON_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("BATON_PORT_8000_TCP_PORT", "8000"),
        ("BATON_PORT_8000_TCP_PROTO", "tcp"),
        ("PATH", "/bin"),
    ],
)
def test_the_links_of_kubernetes_are_none_of_our_settings(name: str, value: str) -> None:
    check_variables({name: value})


def test_a_port_that_is_no_link_is_refused() -> None:
    with pytest.raises(SettingsError, match="unknown setting: BATON_HTTP_PORT"):
        check_variables({"BATON_HTTP_PORT": "8000"})
