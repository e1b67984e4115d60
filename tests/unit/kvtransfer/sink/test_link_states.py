"""The state table of a sink's link to a source."""

import pytest

from kvtransfer.sink.link import LINK_STATES, LinkEvent, LinkStage
from protocol.state_table import IllegalTransition


@pytest.mark.parametrize("stage", [LinkStage.DIALLING, LinkStage.ATTACHING, LinkStage.OPEN])
def test_a_link_may_break_at_any_stage(stage: LinkStage) -> None:
    assert LINK_STATES.rows[stage, LinkEvent.BROKE] is LinkStage.LOST


def test_a_lost_link_never_comes_back() -> None:
    assert LINK_STATES.is_final(LinkStage.LOST)


def test_a_link_whose_stream_ended_attaches_again() -> None:
    life = LINK_STATES.begin(LinkStage.DIALLING, name="link to prefill-0")
    for event in (LinkEvent.ANSWERED, LinkEvent.STREAM_UP, LinkEvent.STREAM_ENDED):
        life.move(event)
    assert life.state is LinkStage.ATTACHING
    assert life.move(LinkEvent.STREAM_UP) is LinkStage.OPEN


def test_a_stream_before_the_sources_answer_is_told_with_the_story() -> None:
    life = LINK_STATES.begin(LinkStage.DIALLING, name="link to prefill-0")
    with pytest.raises(IllegalTransition, match="link to prefill-0: stream up in state dialling"):
        life.move(LinkEvent.STREAM_UP)
