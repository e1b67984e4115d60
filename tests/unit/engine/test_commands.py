from engine.batch import SequenceId
from engine.commands import Inbox

A = SequenceId("a")


def begin(at: float) -> None: ...


def abort(sequence: SequenceId) -> None: ...


def release(sequence: SequenceId) -> None: ...


def submitted() -> Inbox:
    inbox = Inbox(capacity=4)
    inbox.submit(A, begin, 0.0)
    return inbox


def test_commands_are_taken_once_and_in_order() -> None:
    inbox = submitted()
    inbox.tell(A, abort)
    assert inbox.take_commands(wait=True) == [(begin, (0.0,)), (abort, (A,))]
    assert inbox.take_commands(wait=False) == []


def test_equal_commands_collapse() -> None:
    inbox = submitted()
    for _ in range(1000):
        inbox.tell(A, abort)
    assert len(inbox.take_commands(wait=False)) == 2


def test_equal_calls_of_one_method_collapse() -> None:
    inbox, told = submitted(), Inbox(capacity=1)
    for _ in range(1000):
        inbox.tell(A, told.forget)
    assert inbox.take_commands(wait=False)[1:] == [(told.forget, (A,))]


def test_there_is_nothing_to_say_about_a_sequence_that_is_not_here() -> None:
    inbox = Inbox(capacity=4)
    inbox.tell(A, release)
    inbox.submit(A, begin, 0.0)
    inbox.take_commands(wait=True)
    inbox.forget(A)
    inbox.tell(A, abort)
    assert inbox.take_commands(wait=False) == []
