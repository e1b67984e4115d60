"""Who may be here soon, by the model's name."""

from math import inf

from protocol.ids import WorkerId
from protocol.messages import Role
from protocol.store.workers import ComingWorker
from router.workers.expected_workers import MOST_MODELS, ExpectedWorkers


def coming(worker: str, model: str, role: Role = "decode") -> ComingWorker:
    return ComingWorker(worker=WorkerId(worker), role=role, model=model)


def test_a_model_is_coming_while_a_decode_worker_of_it_loads() -> None:
    expected = ExpectedWorkers()
    assert not expected.is_coming(None)
    assert expected.note_coming([coming("d", "a"), coming("p", "b", "prefill")])
    assert [expected.is_coming(name) for name in ("a", "b", None)] == [True, False, True]
    assert not expected.note_coming([coming("d", "a")]), "no news"
    assert expected.note_coming([coming("d", "")]), "which is not known yet"
    assert expected.is_coming("a")
    assert expected.note_coming([])
    assert not expected.is_coming("a")


def test_when_the_last_of_each_model_left_is_kept_for_so_many() -> None:
    expected = ExpectedWorkers()
    assert expected.left_at("a") == expected.left_at(None) == -inf
    expected.note_left("a", now=1.0)
    expected.note_left("b", now=2.0)
    assert (expected.left_at("a"), expected.left_at("b"), expected.left_at(None)) == (1, 2, 2)
    expected.note_left("a", now=3.0)
    for number in range(MOST_MODELS - 1):
        expected.note_left(str(number), now=4.0)
    assert (expected.left_at("a"), expected.left_at("b")) == (3, -inf)
