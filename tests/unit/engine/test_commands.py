from engine.batch import SequenceId
from engine.commands import Abort, Inbox, Release, Submission, Submit
from protocol.messages import Sampling

A = SequenceId("a")


def submit(inbox: Inbox) -> Submit:
    sampling = Sampling(seed=1, max_tokens=1)
    command = Submit(Submission(id=A, prompt=[1], sampling=sampling), at=0.0)
    inbox.submit(command)
    return command


def test_commands_are_taken_once_and_in_order() -> None:
    inbox = Inbox(capacity=4)
    command = submit(inbox)
    inbox.tell(Abort(A))
    assert inbox.take(wait=True) == [command, Abort(A)]
    assert inbox.take(wait=False) == []


def test_equal_commands_collapse() -> None:
    inbox = Inbox(capacity=4)
    submit(inbox)
    for _ in range(1000):
        inbox.tell(Abort(A))
    assert len(inbox.take(wait=False)) == 2


def test_there_is_nothing_to_say_about_a_sequence_that_does_not_live() -> None:
    inbox = Inbox(capacity=4)
    inbox.tell(Release(A))
    submit(inbox)
    inbox.take(wait=True)
    inbox.forget(A)
    inbox.tell(Abort(A))
    assert inbox.take(wait=False) == []
