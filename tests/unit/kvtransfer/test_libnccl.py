"""NCCL as far as it goes without a GPU; skipped where there is no library."""

import pytest

from kvtransfer.device import libnccl
from kvtransfer.device.libnccl import Nccl, version_text
from protocol.errors import TransferError


@pytest.fixture
def nccl() -> Nccl:
    try:
        return Nccl(lambda: None)
    except TransferError as error:
        pytest.skip(str(error))


def test_a_version_reads_as_people_write_it() -> None:
    assert [version_text(code) for code in (21_800, 22_703, 23_203)] == [
        "2.18.0", "2.27.3", "2.32.3"
    ]  # fmt: skip


def test_the_library_says_its_version_and_makes_ids(nccl: Nccl) -> None:
    assert tuple(map(int, nccl.version.split("."))) >= (2, 18)
    assert len({nccl.unique_id() for _ in range(3)}) == 3


def test_two_ranks_on_one_gpu_need_the_environment_to_say_so(
    nccl: Nccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE", raising=False)
    assert "both are on GPU a" in nccl.why_not(ours="a", theirs="a")
    assert nccl.why_not(ours="a", theirs="b") == ""


def test_an_id_of_another_size_is_refused(nccl: Nccl) -> None:
    with pytest.raises(TransferError, match="no unique id"):
        nccl.join(b"short", rank=0)


def test_a_configuration_ends_where_version_2_17_does() -> None:
    assert libnccl.CONFIG_BYTES == 40
