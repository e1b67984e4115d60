"""A worker on a device and one on the host, over planes of hosts: the tokens of a colocated run."""

from collections.abc import Iterator

import pytest
from support.device_engine import Pair, device_pair, settings_for
from support.eventually import eventually
from support.fake_driver import FakeDriver
from support.host_device import HostDevice

from protocol.messages import Emit, Sampling
from tools.make_checkpoint import Shape, make_checkpoint

GREEDY = Sampling(seed=1, max_tokens=12, temperature=0.0, ignore_eos=True)
SEEDED = Sampling(seed=7, max_tokens=12, temperature=0.8, top_p=0.95, ignore_eos=True)


@pytest.fixture(scope="module", params=["device-host shm", "host-device tcp"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, Shape(context=256))
    places, _, transport = request.param.partition(" ")
    ends = [place == "device" for place in places.split("-")]
    with device_pair(
        settings_for(path), transports=(transport,),
        drivers=(FakeDriver() if ends[0] else None, FakeDriver() if ends[1] else None),
        devices=(HostDevice() if ends[0] else None, HostDevice() if ends[1] else None),
    ) as pair:  # fmt: skip
        yield pair


def ids(emits: list[Emit]) -> list[int]:
    """By index: both workers say the first."""
    by_index = {emit.index: emit.token_id for emit in emits}
    return [by_index[index] for index in sorted(by_index)]


@pytest.mark.parametrize("rule", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("length", [5, 61])
def test_tokens_after_a_hand_over_equal_colocated_ones(
    pair: Pair, length: int, rule: Sampling
) -> None:
    name = f"{length} {rule.temperature}"
    prompt = [5 + (position * 37 + length * 101) % 400 for position in range(length)]
    apart = ids(pair.apart(f"apart {name}", prompt, rule))
    landed = pair.landed(f"apart {name}")
    assert landed is not None and landed.transport in ("shm", "tcp") and landed.blocks_moved
    assert len(apart) == 12 and apart == ids(pair.together(f"together {name}", prompt, rule))


def test_after_a_hand_over_every_block_is_back(pair: Pair) -> None:
    pair.apart("last", [5 + n % 300 for n in range(30)], GREEDY)
    for service in (pair.prefill, pair.decode):
        eventually(service.is_idle)
