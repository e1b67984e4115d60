"""What a decode worker keeps alive, and what it lets go of."""

from unittest.mock import Mock, create_autospec

import msgspec
import pytest
from support.services import ROUTER, VOCAB_SIZE, Story, make_service, mute_engine
from support.words import LAYOUT, decode

from decode_worker.service import DecodeService
from kvtransfer.sink.sink import Sink
from protocol.ids import LeaseId, WorkerId, new_epoch
from protocol.messages import Decode, Failed, Sampling, Ticket


def ticket(lease: int) -> Ticket:
    return Ticket(
        worker=WorkerId("prefill-0"), epoch=new_epoch(), lease=LeaseId(lease), address="",
        layout=LAYOUT, compat="", num_tokens=3,
    )  # fmt: skip


def made() -> tuple[DecodeService, Story, Mock]:
    story = Story()
    service = make_service(DecodeService, story)
    sink = create_autospec(Sink, instance=True)
    service.attach(epoch=new_epoch(), engine=mute_engine(), sink=sink, layout=LAYOUT)
    return service, story, sink


def test_the_lease_of_a_repeated_request_is_not_held() -> None:
    service, _, sink = made()
    first, again = ticket(1), ticket(2)
    for given in (first, again):
        service.take(ROUTER, msgspec.structs.replace(decode(), ticket=given))
    sink.hold.assert_called_once_with(first)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"generated": (-1,)}, "generated"),
        ({"generated": (VOCAB_SIZE,)}, "generated"),
        ({"sampling": Sampling(seed=1, max_tokens=8, stop=("",))}, "stop: "),
        ({"sampling": Sampling(seed=1, max_tokens=8, stop_token_ids=(-1,))}, "stop_token_ids"),
    ],
)
def test_numbers_that_cannot_be_refuse_one_request_and_free_its_lease(
    changes: dict[str, object], what: str
) -> None:
    service, story, sink = made()
    given = ticket(1)
    message: Decode = msgspec.structs.replace(decode(), ticket=given, **changes)
    service.take(ROUTER, message)
    (answer,) = story.told
    assert isinstance(answer, Failed) and not answer.retryable
    assert answer.message.startswith(what)
    sink.hold.assert_not_called()
    sink.drop.assert_called_once_with(given, reason="the request was refused")
    assert service.is_idle()
