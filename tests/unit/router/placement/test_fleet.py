import pytest
from msgspec.structs import replace
from support.words import registration

from protocol.ids import WorkerId
from protocol.messages import Load, Speeds, StepModel, TransportUse
from router.placement.fleet import PRIOR_STEP, Fleet, Work

STEP = StepModel(fixed_s=0.01, token_s=1e-4, attended_s=1e-9, sequence_s=1e-3)
NONE = Load(running=0, waiting=0, waiting_tokens=0)


def speeds(step: StepModel = STEP, **others: float) -> Speeds:
    rest = {"prefill_tokens_per_s": 0.0, "decode_step_s": 0.0, "transfer_bytes_per_s": 0.0}
    return Speeds(**(rest | others), step=step)


def use(peer: str, rate: float) -> TransportUse:
    return TransportUse(
        name="tcp", peer=WorkerId(peer), why="", fetches=1, bytes=1, bytes_per_s=rate
    )


def work(queue_s: float = 0.0, **fields: object) -> Work:
    plain = Work(load=NONE, free_share=1.0, reported_at_s=10.0, queue_s=queue_s)
    return Work(**{name: getattr(plain, name) for name in plain.__slots__} | fields)


def test_slots_are_dense_and_used_again() -> None:
    fleet = Fleet()
    slots = [fleet.add_worker(registration(f"decode-{n}")) for n in range(40)]
    assert slots == list(range(40)) and len(fleet.rows) >= 40
    fleet.ready[7] = 1
    fleet.set_speeds(9, speeds(), [use("decode-7", 5.0)])
    fleet.remove_worker(7)
    assert fleet.slot_of(WorkerId("decode-7")) is None and not fleet.ready[7]
    assert fleet.rows["peers"][9][0] == -1, "the next one there is another worker"
    assert fleet.add_worker(registration("decode-40")) == 7
    assert fleet.name_of(7) == "decode-40"
    assert fleet.rows["rank"][[0, 1, 10, 7]].tolist() == [0, 1, 2, 35]


def test_what_was_sent_comes_after_what_was_reported_and_takes_its_room() -> None:
    fleet = Fleet()
    slot = fleet.add_worker(replace(registration(), num_blocks=100, max_context_tokens=400))
    load = Load(running=2, waiting=1, waiting_tokens=70, context_tokens=50)
    sent = {"sent_prompts": ((10.1, 0.5), (13.0, 0.25)), "num_sent": 3, "num_sent_tokens": 90}
    fleet.set_work(slot, work(2.0, load=load, free_share=0.5, **sent))
    row = fleet.rows[slot]
    assert row["busy_until_s"] == 13.25, "idle from 12.5 on, until the second came"
    assert (row["running"], row["context_tokens"], row["waiting_tokens"]) == (6, 140, 70)
    assert row["free_tokens"] == 200 - 90
    fleet.set_work(slot, work(free_share=0.1, num_sent_tokens=90))
    assert fleet.rows["free_tokens"][slot] == 0


def test_who_has_measured_nothing_is_taken_for_the_mean_of_the_others() -> None:
    fleet = Fleet()
    slow, fast, fresh = (fleet.add_worker(registration(f"decode-{n}")) for n in range(3))
    fleet.guess_speeds(now=0.0)
    assert fleet.rows["token_s"].tolist()[:3] == [PRIOR_STEP.token_s] * 3
    fleet.set_speeds(slow, speeds(), ())
    fleet.set_speeds(fast, speeds(replace(STEP, token_s=2e-4), transfer_bytes_per_s=6.0), ())
    fleet.guess_speeds(now=0.5)
    assert fleet.rows["token_s"][fresh] == PRIOR_STEP.token_s, "a guess serves for a second"
    fleet.guess_speeds(now=1.0)
    assert fleet.rows["token_s"][fresh] == pytest.approx(1.5e-4)
    assert fleet.rows["bytes_per_s"].tolist()[:3] == [6.0, 6.0, 6.0]
    joined = fleet.add_worker(registration("decode-3"))
    fleet.guess_speeds(now=1.1)
    assert fleet.rows["token_s"][joined] == pytest.approx(1.5e-4)


def test_a_worker_without_a_step_model_is_known_by_its_mean_speeds() -> None:
    fleet = Fleet()
    slot = fleet.add_worker(registration())
    fleet.set_speeds(slot, speeds(StepModel(), prefill_tokens_per_s=4e3, decode_step_s=0.02), ())
    row = fleet.rows[slot]
    assert (row["fixed_s"], row["token_s"], row["sequence_s"]) == (0.02, 0.00025, 0.001)


def test_of_a_peer_reached_in_several_ways_the_last_one_counts() -> None:
    fleet = Fleet()
    here, there = fleet.add_worker(registration("decode-0")), fleet.add_worker(registration("p"))
    uses = [use("p", 5.0), use("p", 7.0), use("stranger", 9.0), use("decode-0", 0.0)]
    fleet.set_speeds(here, speeds(), uses)
    row = fleet.rows[here]
    assert (row["num_peers"], row["peers"][0], row["peer_bytes_per_s"][0]) == (1, there, 5.0)


def test_a_token_of_a_model_with_windows_takes_a_block_of_every_group() -> None:
    fields = registration("decode-0")
    layout = replace(fields.layout, num_groups=4)
    fleet = Fleet()
    slot = fleet.add_worker(replace(fields, layout=layout, max_context_tokens=8))
    row = fleet.rows[slot]
    assert row["pool_tokens"] == 8 and row["token_bytes"] == 4 * fields.layout.token_bytes


def test_a_compat_hash_is_looked_up_while_a_worker_has_it() -> None:
    fleet = Fleet()
    first = fleet.add_worker(replace(registration("decode-0"), compat="a", dynamic_after=5))
    fleet.add_worker(replace(registration("decode-1"), compat="b"))
    second = fleet.add_worker(replace(registration("decode-2"), compat="a"))
    fleet.remove_worker(first)
    assert set(fleet.chains) == {"a", "b"}
    fleet.remove_worker(second)
    assert set(fleet.chains) == {"b"}
