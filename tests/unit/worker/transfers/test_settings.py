"""What a worker refuses to start with, of the settings of moving KV."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.transfers.settings import TransferSettings


def _settings(folder: str) -> TransferSettings:
    given = {"model": Path("m"), "redis": "redis://127.0.0.1:1/0", "kv_socket_folder": folder}
    return TransferSettings.model_validate(given)


def test_sockets_are_abstract_or_in_a_folder_that_is_there(tmp_path: Path) -> None:
    assert _settings("").kv_socket_folder == ""
    assert _settings(f"{tmp_path}").kv_socket_folder == f"{tmp_path}"


@pytest.mark.parametrize("folder", ["sockets", "/there/is/none", "/etc/passwd"])
def test_a_folder_that_cannot_have_sockets_is_refused_by_its_name(folder: str) -> None:
    with pytest.raises(ValidationError, match="kv_socket_folder") as refused:
        _settings(folder)
    assert repr(folder) in str(refused.value)
