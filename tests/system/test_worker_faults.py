"""Workers and Redis are killed, drained and lied to, for real."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from support.corrupting_worker import corrupting
from support.eventually import eventually, soon
from support.mini_router import MiniRouter
from support.processes import ROOT, process
from support.worker_cluster import (
    BLOCK,
    GREEDY,
    LONG,
    WorkerCluster,
    drive,
    prompt,
    tiny_checkpoint,
)

from protocol.blocks import HASH_BYTES
from protocol.ids import WorkerId
from protocol.messages import (
    Failed,
    Finished,
    Grammar,
    Landed,
    PrefillDone,
    Sampling,
    Started,
)
from protocol.text.grammar import GrammarTokenizer, Matcher
from protocol.text.tokenizer import Tokenizer
from tools.python_path import python_path

pytestmark = pytest.mark.system


HELD = msgspec.structs.replace(
    LONG,
    grammar=Grammar(
        text="""start: %json {"type": "array", "minItems": 200, "items": {
        "type": "object", "required": ["n", "word"], "additionalProperties": false,
        "properties": {"n": {"type": "integer"}, "word": {"type": "string", "maxLength": 4}}}}"""
    ),
)
"""To a text that is longer."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def cluster(checkpoint: Path) -> Iterator[WorkerCluster]:
    """Workers that a test leaves alive serve the next one too."""
    with ExitStack() as stack:
        yield WorkerCluster(checkpoint, stack)


def test_a_decode_worker_killed_while_it_holds_a_lease_leaves_the_source_clean(
    cluster: WorkerCluster,
) -> None:
    cluster.start("prefill-slow", "--token-budget", "9")
    decode = cluster.start("decode-0")

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-slow", "decode-0")
        tokens = prompt(240)
        first = await router.prefill("prefill-slow", "r", tokens, GREEDY)
        await soon(lambda: bool(first.words))
        started = first.words[0]
        assert isinstance(started, Started)
        await router.decode("decode-0", "r", tokens, GREEDY, ticket=started.ticket)
        decode.kill()
        await router.gone("decode-0")
        await router.ended(first)
        assert isinstance(first.ending, PrefillDone)
        await router.idle("prefill-slow")

    drive(cluster, test)


def test_a_prefill_worker_killed_during_transfer_is_source_lost_and_nothing_leaks(
    cluster: WorkerCluster,
) -> None:
    prefill = cluster.start("prefill-slow", "--token-budget", "9")
    cluster.start("decode-0")

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-slow", "decode-0")
        tokens = prompt(240, salt=77)
        first = await router.prefill("prefill-slow", "r", tokens, GREEDY)
        await soon(lambda: bool(first.words))
        started = first.words[0]
        assert isinstance(started, Started)
        os.kill(prefill.pid, signal.SIGSTOP)  # in the middle, surely before the last chunk
        assert first.ending is None
        second = await router.decode("decode-0", "r", tokens, GREEDY, ticket=started.ticket)
        await soon(lambda: router.beat("decode-0").load.running == 1)
        prefill.kill()

        await router.gone("prefill-slow")
        await router.ended(second)
        assert isinstance(second.ending, Failed)
        assert (second.ending.code, second.ending.retryable) == ("source_lost", True)
        assert second.emits == []
        await router.idle("decode-0")

        again = await router.decode("decode-0", "r", tokens, GREEDY, attempt=1)
        await router.ended(again)
        assert isinstance(again.ending, Finished) and len(again.tokens) == 12

    drive(cluster, test)


@pytest.mark.parametrize("rule", [LONG, HELD], ids=["free", "held to a grammar"])
def test_a_stream_cut_by_a_killed_decode_worker_goes_on_elsewhere_with_the_same_tokens(
    cluster: WorkerCluster, checkpoint: Path, rule: Sampling
) -> None:
    """Of an object, in its middle."""
    cluster.start("prefill-0")
    victim = cluster.start("decode-0")
    cluster.start("decode-1")

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0", "decode-1")
        tokens = prompt(40)
        whole = await router.decode("decode-1", "whole", tokens, rule)
        await router.ended(whole)

        first = await router.prefill("prefill-0", "r", tokens, rule)
        await soon(lambda: bool(first.words))
        started = first.words[0]
        assert isinstance(started, Started)
        cut = await router.decode("decode-0", "r", tokens, rule, ticket=started.ticket)
        await soon(lambda: len(cut.emits) > 5)
        victim.kill()
        await router.gone("decode-0")
        assert cut.ending is None and cut.tokens == whole.tokens[: len(cut.tokens)]

        _, rest = await router.disaggregated(
            "r", tokens, rule, decode="decode-1", generated=tuple(cut.tokens), attempt=1
        )
        assert cut.tokens + rest.tokens == whole.tokens
        assert cut.text + rest.text == whole.text
        assert rule.grammar is None or _begins_a_text_of(rule.grammar, whole.tokens, checkpoint)
        await router.idle("prefill-0", "decode-1")

    drive(cluster, test)


def test_redis_killed_and_restarted_empty_fails_no_request_and_is_filled_again(
    cluster: WorkerCluster,
) -> None:
    cluster.start("prefill-0")
    cluster.start("decode-0")

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        running = await router.decode("decode-0", "before", prompt(30), LONG)
        await soon(lambda: bool(running.emits))
        cluster.redis.kill()
        _, second = await router.disaggregated("without", prompt(5 * BLOCK, salt=2), GREEDY)
        await router.ended(running)
        assert isinstance(running.ending, Finished) and isinstance(second.ending, Finished)

        cluster.redis.start()
        names = [WorkerId("prefill-0"), WorkerId("decode-0")]
        epochs = {name: router.links[name].registration.epoch for name in names}

        async def filled() -> bool:
            records = await router.store.list_workers()
            if not epochs.keys() <= {record.registration.worker for record in records}:
                return False
            for name, epoch in epochs.items():
                snapshot = await router.store.snapshot(name, epoch)
                cached = router.beat(name).blocks.cached
                if snapshot is None or cached < 5:
                    return False
                if len(snapshot.packed_hashes) != cached * HASH_BYTES:
                    return False
            return True

        await soon(filled, what="both workers and their blocks in Redis")
        await router.idle("prefill-0", "decode-0")

    drive(cluster, test)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_corrupted_blocks_are_detected_and_fetched_again(
    cluster: WorkerCluster, transport: str, tmp_path: Path
) -> None:
    cluster.start("prefill-0")
    name = f"decode-tampered-{transport}"
    env = corrupting(tmp_path, num_blocks=2)
    decode = cluster.start(name, "--transports", transport, env=env)

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", name)
        _, second = await router.disaggregated("r", prompt(60), GREEDY, decode=name)
        local = await router.decode(name, "local", prompt(60), GREEDY, salt="other")
        await router.ended(local)
        landed = second.find(Landed)
        assert isinstance(landed, Landed) and landed.transport == transport
        assert second.tokens == local.tokens
        assert len(decode.events("block corrupted on purpose")) == 2
        rejected = [event["blocks"] for event in decode.events("block rejected")]
        assert sum(map(int, map(str, rejected))) == 2
        await router.idle("prefill-0", name)

    drive(cluster, test)


def test_a_slower_transport_than_the_first_is_warned_of_once_and_shown_with_its_reason(
    cluster: WorkerCluster,
) -> None:
    cluster.start("prefill-tcp", "--transports", "tcp")
    decode = cluster.start("decode-wide", "--transports", "shm,tcp")

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-tcp", "decode-wide")
        for number in range(2):
            tokens = prompt(60, salt=40 + number)
            pair = {"prefill": "prefill-tcp", "decode": "decode-wide"}
            await router.disaggregated(f"r{number}", tokens, GREEDY, **pair)
        why = "tcp reachable; not shm: the source does not serve shm"
        chosen = [event for event in decode.events("transport chosen") if event["why"] == why]
        assert [event["level"] for event in chosen] == ["warning"]

        def uses(worker: str, peer: str) -> list[tuple[str, int, str]]:
            uses = router.beat(worker).transports
            return [(use.name, use.fetches, use.why) for use in uses if use.peer == peer]

        await soon(lambda: uses("decode-wide", "prefill-tcp") == [("tcp", 2, why)])
        lent = [("tcp", 2, "chosen by the fetching side")]
        await soon(lambda: uses("prefill-tcp", "decode-wide") == lent)

    drive(cluster, test)


def test_a_fallback_that_is_not_allowed_fails_the_request_and_says_why(
    cluster: WorkerCluster,
) -> None:
    cluster.start("prefill-tcp", "--transports", "tcp")
    cluster.start("decode-strict", "--transports", "shm,tcp", "--no-allow-fallback")

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-tcp", "decode-strict")
        _, second = await router.disaggregated(
            "r", prompt(60, salt=50), GREEDY, prefill="prefill-tcp", decode="decode-strict"
        )
        assert isinstance(second.ending, Failed)
        assert (second.ending.code, second.ending.retryable) == ("source_lost", False)
        assert second.ending.message == (
            "no fallback allowed; not shm: the source does not serve shm"
        )
        assert second.emits == []
        await router.idle("prefill-tcp", "decode-strict")

    drive(cluster, test)


def test_blocks_that_stay_corrupt_are_never_decoded_from(
    cluster: WorkerCluster, tmp_path: Path
) -> None:
    cluster.start("prefill-0")
    cluster.start("decode-corrupt", env=corrupting(tmp_path, num_blocks=1000))

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-corrupt")
        _, second = await router.disaggregated("r", prompt(60), GREEDY, decode="decode-corrupt")
        assert isinstance(second.ending, Failed)
        assert (second.ending.code, second.ending.retryable) == ("source_lost", True)
        assert second.emits == []
        await router.idle("prefill-0", "decode-corrupt")

    drive(cluster, test)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drained_worker_finishes_what_runs_refuses_the_rest_and_leaves(
    cluster: WorkerCluster, number: signal.Signals
) -> None:
    one_by_one = ("--max-running", "1")  # it drains long enough to refuse
    decode = cluster.start("decode-single", *one_by_one, "--drain-s", "60")

    async def test(router: MiniRouter) -> None:
        await router.ready("decode-single")
        running = [
            await router.decode(
                "decode-single", f"running{i}", prompt(30, salt=i), (LONG, HELD)[i % 2]
            )
            for i in range(6)
        ]
        await soon(lambda: bool(running[0].emits))
        decode.ask(number)
        await soon(lambda: router.beat("decode-single").state == "draining")
        refused = await router.decode("decode-single", "refused", prompt(30), LONG)
        await router.ended(*running, refused)
        assert all(isinstance(one.ending, Finished) and len(one.tokens) == 200 for one in running)
        assert isinstance(refused.ending, Failed)
        assert (refused.ending.code, refused.ending.retryable) == ("overloaded", True)
        assert decode.wait() == 0
        assert "decode-single" not in [
            record.registration.worker for record in await router.store.list_workers()
        ]

    drive(cluster, test)


def test_a_draining_prefill_worker_holds_its_leases_until_they_are_fetched(
    cluster: WorkerCluster,
) -> None:
    prefill = cluster.start("prefill-patient", "--lease-ttl-s", "20")
    cluster.start("decode-0")

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-patient", "decode-0")
        first = await router.prefill("prefill-patient", "r", prompt(60), GREEDY)
        await router.ended(first)
        started = first.words[0]
        assert isinstance(started, Started)
        prefill.ask()
        await soon(lambda: router.beat("prefill-patient").state == "draining")
        second = await router.decode("decode-0", "r", prompt(60), GREEDY, ticket=started.ticket)
        await router.ended(second)
        assert isinstance(second.ending, Finished)
        assert prefill.wait() == 0

    drive(cluster, test)


def test_a_drain_that_takes_too_long_fails_the_rest_as_retryable(cluster: WorkerCluster) -> None:
    decode = cluster.start("decode-hasty", "--drain-s", "0")

    async def test(router: MiniRouter) -> None:
        await router.ready("decode-hasty")
        many = [
            await router.decode("decode-hasty", f"r{i}", prompt(30, salt=i), LONG) for i in range(8)
        ]
        await soon(lambda: bool(many[0].emits))
        decode.ask()
        await router.ended(*many)
        last = many[-1].ending
        assert isinstance(last, Failed) and (last.code, last.retryable) == ("overloaded", True)
        assert decode.wait() == 0

    drive(cluster, test)


def test_a_worker_that_never_got_its_decode_frees_the_blocks_when_the_lease_expires(
    cluster: WorkerCluster,
) -> None:
    cluster.start("prefill-brief", "--lease-ttl-s", "0.5")

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-brief")
        first = await router.prefill("prefill-brief", "r", prompt(60), GREEDY)
        await router.ended(first)
        await router.idle("prefill-brief")

    drive(cluster, test)


def test_a_queue_that_is_full_refuses_as_overloaded(cluster: WorkerCluster) -> None:
    cluster.start("decode-small", "--max-waiting", "2", "--max-running", "1")

    async def test(router: MiniRouter) -> None:
        await router.ready("decode-small")
        many = [
            await router.decode("decode-small", f"r{i}", prompt(9, salt=i), LONG) for i in range(12)
        ]
        await router.ended(*many)
        refused = [heard.ending for heard in many if isinstance(heard.ending, Failed)]
        assert refused and {failure.code for failure in refused} == {"overloaded"}
        assert all(failure.retryable for failure in refused)
        assert any(isinstance(heard.ending, Finished) for heard in many)
        await router.idle("decode-small")

    drive(cluster, test)


def test_a_ticket_for_other_tokens_is_refused(cluster: WorkerCluster) -> None:
    cluster.start("prefill-0")
    cluster.start("decode-0")

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        first = await router.prefill("prefill-0", "r", prompt(60), GREEDY)
        await soon(lambda: bool(first.words))
        started = first.words[0]
        assert isinstance(started, Started)
        second = await router.decode("decode-0", "r", prompt(61), GREEDY, ticket=started.ticket)
        await router.ended(second)
        assert isinstance(second.ending, Failed) and not second.ending.retryable
        assert "ticket" in second.ending.message
        await router.idle("prefill-0", "decode-0")

    drive(cluster, test)


def test_a_worker_dies_with_its_supervisor(checkpoint: Path, cluster: WorkerCluster) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "flags = [*sys.argv[1:], '--parent-pid', str(os.getpid())]\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'decode_worker', *flags])\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    supervisor = subprocess.Popen(
        [
            *(sys.executable, "-c", script, "--model", str(checkpoint)),
            *("--redis", cluster.redis.url, "--worker", "decode-orphan", "--kv-blocks", "8"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert supervisor.stdout is not None
    with supervisor.stdout:
        worker = int(supervisor.stdout.readline())

    async def test(router: MiniRouter) -> None:
        await router.ready("decode-orphan")
        supervisor.kill()
        supervisor.wait()
        await router.gone("decode-orphan")

    drive(cluster, test)
    eventually(lambda: not Path(f"/proc/{worker}").exists() or _is_zombie(worker), 10)


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_start_up_errors_are_one_line_and_an_exit_code(
    checkpoint: Path, cluster: WorkerCluster, tmp_path: Path
) -> None:
    port = cluster.redis.port
    model, redis = ("--model", str(checkpoint)), ("--redis", cluster.redis.url)
    expected = {
        (*redis, *model, "--port", str(port)): (
            2,
            f"decode-0: port: cannot listen on 127.0.0.1:{port}",
        ),
        (*redis, "--model", str(tmp_path)): (3, f"decode-0: {tmp_path}/"),
        (*redis, *model, "--token-budget", "4", "--max-running", "4"): (
            2,
            "decode_worker: token_budget: ",
        ),
        (*redis, *model, "--cores", "4096"): (2, "decode-0: cores: '4096'"),
        (*redis, *model, "--nonsense", "4"): (2, "decode_worker: unknown setting: --nonsense 4"),
    }
    with ExitStack() as stack:
        workers = {
            flags: stack.enter_context(process("decode_worker", "--worker", "decode-0", *flags))
            for flags in expected
        }
        for flags, (exit_code, line) in expected.items():
            assert workers[flags].wait() == exit_code
            written = workers[flags].output
            plain = [text for text in written.splitlines() if not text.startswith("{")]
            assert len(plain) == 1 and plain[0].startswith(line), written


def _begins_a_text_of(grammar: Grammar, tokens: list[int], checkpoint: Path) -> bool:
    vocabulary = GrammarTokenizer(Tokenizer.load(checkpoint))
    matcher = Matcher.compile(grammar.text, vocabulary)
    return all(matcher.accept(token_id) for token_id in tokens)
