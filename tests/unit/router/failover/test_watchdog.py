"""A look at all open requests: workers and times are values."""

from math import inf

from msgspec.structs import replace
from support.words import beat, registration

from protocol.ids import WorkerId
from protocol.messages import Role
from router.failover.stall import StallLimits, Wait
from router.failover.watchdog import PERIOD_S, Watchdog
from router.workers.worker import KnownWorker

LIMITS = StallLimits(silent_s=2.0, first_token_s=10.0, next_token_s=5.0)
D, OTHER, P = WorkerId("decode-0"), WorkerId("decode-1"), WorkerId("prefill-0")


class Request:
    """Waits for `worker` since `silent_since`."""

    def __init__(self, worker: WorkerId, *, silent_since: float) -> None:
        self.worker, self.silent_since = worker, silent_since
        self.stalls: list[str] = []

    def find_wait(self) -> Wait:
        return Wait(
            worker=self.worker,
            awaited="next_token",
            since=self.silent_since,
            expected_s=0.02,
            is_streaming=True,
            is_compiled=False,
            num_stalls=0,
        )

    def stall(self, why: str, wait: Wait, *, now: float) -> None:
        self.stalls.append(why)
        self.silent_since = inf


class World:
    """A watchdog, its workers, which all beat unless they are `quiet`, and a clock."""

    def __init__(self, *names: WorkerId) -> None:
        self.now = 100.0
        self.workers = {name: _worker(name) for name in names}
        self.requests: list[Request] = []
        self.quiet: set[WorkerId] = set()
        self.dog = Watchdog(
            requests=lambda: self.requests,
            workers=self.workers,
            limits=LIMITS,
            clock=lambda: self.now,
        )

    def ask(self, worker: WorkerId) -> Request:
        made = Request(worker, silent_since=self.now)
        self.requests.append(made)
        return made

    def pass_s(self, seconds: float) -> None:
        """Looks as often as it would."""
        for _ in range(round(seconds / PERIOD_S)):
            self.now += PERIOD_S
            for name, worker in self.workers.items():
                if name not in self.quiet:
                    worker.heard_at = self.now
            self.dog.look(now=self.now)


def _worker(name: WorkerId) -> KnownWorker:
    role: Role = "prefill" if name.startswith("prefill") else "decode"
    made = KnownWorker(registration(name, role=role))
    made.note_beat(beat(), now=100.0)
    made.heard_at = 100.0
    return made


def test_who_waits_for_a_worker_that_gets_nothing_done_moves_on_once() -> None:
    world = World(D, OTHER)
    stuck = world.ask(D)
    world.pass_s(4.5)
    assert not stuck.stalls
    world.pass_s(20)
    assert len(stuck.stalls) == 1


def test_a_stopped_worker_is_left_before_its_link_is_lost_and_avoided() -> None:
    world = World(D, OTHER)
    stuck = world.ask(D)
    world.quiet.add(D)
    world.pass_s(2.5)
    assert stuck.stalls == ["decode-0 has said nothing for 2.2 s"]
    assert world.dog.avoided == {D}
    world.quiet.clear()
    world.pass_s(0.5)
    assert not world.dog.avoided


def test_nobody_moves_on_where_there_is_nobody_else() -> None:
    world = World(P, D)
    stuck = world.ask(D)
    world.pass_s(30)
    assert not stuck.stalls


def test_a_decode_worker_stands_in_for_the_only_prefill_worker() -> None:
    world = World(P, D)
    stuck = world.ask(P)
    world.pass_s(30)
    assert stuck.stalls


def test_nobody_moves_on_to_a_worker_that_stands_still_itself() -> None:
    world = World(D, OTHER)
    world.quiet |= {D, OTHER}
    world.pass_s(3)
    stuck = world.ask(D)
    world.pass_s(30)
    assert not stuck.stalls


def test_nobody_is_blamed_for_what_was_not_heard_while_this_process_stood_still() -> None:
    world = World(D, OTHER)
    waiting = world.ask(D)
    world.now += 60.0
    world.dog.look(now=world.now)
    assert not waiting.stalls and not world.dog.avoided
    waiting.silent_since = world.now  # the token that had come meanwhile
    world.pass_s(4.5)
    assert not waiting.stalls


def test_work_shows_in_the_reports_of_a_worker() -> None:
    world = World(D, OTHER)
    worker = world.workers[D]
    busy = beat(running=1)
    worker.note_beat(busy, now=101.0)
    assert worker.advanced_at == 0.0
    for context, at in ((10, 102.0), (11, 103.0), (11, 104.0)):
        load = replace(busy.load, context_tokens=context)
        worker.note_beat(replace(busy, load=load), now=at)
    assert worker.advanced_at == 103.0
    load = replace(load, waiting_tokens=99)
    worker.note_beat(replace(busy, load=load), now=105.0)
    assert worker.advanced_at == 103.0
    worker.note_beat(replace(busy, load=replace(load, waiting_tokens=50)), now=106.0)
    assert worker.advanced_at == 106.0
