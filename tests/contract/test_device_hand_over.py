"""Prefill on one device, decode on another: the tokens of a colocated run, over cuda_ipc.

With the fake everywhere; with CUDA two engines share one GPU, and a handle its process.
"""

from collections.abc import Iterator

import pytest
from support.device_engine import Pair, device_pair, settings_for
from support.eventually import eventually
from support.fake_driver import FakeDriver
from support.gpu import DRIVERS, driver_for
from support.host_device import HostDevice

from engine.loop import Engine
from engine.runner.gpu.device import Device
from kvtransfer.device.cuda import CudaDriver
from protocol.messages import Emit, Grammar, Sampling
from protocol.text.grammar import GrammarTokenizer, Matcher
from tools.make_checkpoint import Shape, make_checkpoint

GREEDY = Sampling(seed=1, max_tokens=12, temperature=0.0, ignore_eos=True, num_logprobs=2)
SEEDED = Sampling(seed=7, max_tokens=12, temperature=0.8, top_p=0.95, ignore_eos=True)


HELD = Sampling(
    seed=5, max_tokens=12, temperature=1.0,
    grammar=Grammar(text='start: %json {"type": "array", "items": {"const": "ab"}, "minItems": 9}'),
)  # fmt: skip
"""To a text that is longer."""
RULES = pytest.mark.parametrize("rule", [GREEDY, SEEDED, HELD], ids=["greedy", "seeded", "held"])


@pytest.fixture(scope="module", params=DRIVERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, Shape(context=256))
    drivers: tuple[FakeDriver | CudaDriver, FakeDriver | CudaDriver]
    devices: tuple[Device, Device]
    if kind == "fake":
        drivers, devices = (FakeDriver(), FakeDriver()), (HostDevice(), HostDevice())
    else:
        from engine.runner.gpu.cuda import CudaDevice

        driver = driver_for(kind)
        assert isinstance(driver, CudaDriver)
        drivers, devices = (driver, driver), (CudaDevice(0), CudaDevice(0))
    with device_pair(settings_for(path), drivers=drivers, devices=devices) as pair:
        yield pair


def prompt(length: int, *, salt: int) -> list[int]:
    return [5 + (position * 37 + salt * 101) % 400 for position in range(length)]


def ids(emits: list[Emit]) -> list[int]:
    assert sorted({emit.index for emit in emits}) == list(range(12))
    return [next(emit.token_id for emit in emits if emit.index == index) for index in range(12)]


@RULES
@pytest.mark.parametrize("length", [5, 8, 61])
def test_disaggregated_tokens_equal_colocated_ones(pair: Pair, length: int, rule: Sampling) -> None:
    name, tokens = f"{length} {rule.temperature}", prompt(length, salt=length)
    apart = pair.apart(f"apart {name}", tokens, rule)
    landed = pair.landed(f"apart {name}")
    assert landed is not None and landed.transport == "cuda_ipc"
    together = pair.together(f"together {name}", tokens, rule)
    assert ids(apart) == ids(together)
    if rule.grammar is not None:
        matcher = Matcher.compile(rule.grammar.text, GrammarTokenizer(pair.tokenizer))
        assert all(map(matcher.accept, ids(apart)))


@RULES
def test_many_at_once_say_what_each_says_alone(pair: Pair, rule: Sampling) -> None:
    """More than may run together: some wait, prompts are computed beside decodes."""
    prompts = {f"{n} of many {rule.temperature}": prompt(3 + 13 * n, salt=n + 20) for n in range(9)}
    many = pair.all_apart(prompts, rule)
    for name, tokens in prompts.items():
        assert ids(many[name]) == ids(pair.together(f"{name}, alone", tokens, rule))


def test_blocks_in_either_cache_are_neither_computed_nor_moved_again(pair: Pair) -> None:
    tokens = prompt(50, salt=9)
    pair.apart("first", tokens, GREEDY)
    longer = [*tokens, 44, 45]
    second = pair.apart("second", longer, GREEDY)
    started, landed = pair.started("second"), pair.landed("second")
    assert started is not None and started.cached_tokens == 48
    assert landed is not None and landed.blocks_reused == 6 and landed.blocks_moved == 1
    assert ids(second) == ids(pair.together("second, anew", longer, GREEDY))


def test_after_all_hand_overs_every_block_is_back(pair: Pair) -> None:
    pair.apart("last", prompt(30, salt=3), GREEDY)
    for service in (pair.prefill, pair.decode):
        eventually(service.is_idle)
    for engine in pair.engines:

        def free(engine: Engine = engine) -> bool:
            blocks = engine.stats().blocks
            return bool(blocks.free + blocks.cached == blocks.total)

        eventually(free)
