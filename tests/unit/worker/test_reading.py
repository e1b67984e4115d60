"""What a prompt's rows become on their way to the router: pieces in order, or one mean."""

from array import array

from engine.batch import ScoredRows, SummedRows
from protocol.ids import RequestId
from protocol.messages import OfAttempt, PromptScores, PromptVector
from protocol.readings import PoolPrompt, ScorePrompt, TokenScore
from worker.requests import SCORES_A_MESSAGE, JobReading

OF = OfAttempt(request=RequestId("r"), attempt=2)


def scored(first: int, stop: int) -> ScoredRows:
    """By the rows of tokens [first, stop)."""
    return ScoredRows(
        scores=tuple(
            TokenScore(token_id=row + 1, logprob=-1.0, rank=1, top=()) for row in range(first, stop)
        )
    )


def test_scores_leave_in_pieces_that_follow_each_other() -> None:
    size = SCORES_A_MESSAGE
    reading = JobReading(reading=ScorePrompt(), num_prompt=10_000)
    reading.add_rows(0, scored(0, size))
    reading.add_rows(size, scored(size, 2 * size + 1))
    said = reading.take_messages(OF)
    reading.add_rows(2 * size + 1, scored(2 * size + 1, 2 * size + 3))
    said += reading.take_messages(OF)
    assert reading.take_messages(OF) == []
    firsts, token_ids = [], []
    for message in said:
        assert isinstance(message, PromptScores) and message.attempt == 2
        firsts.append(message.first)
        token_ids += [score.token_id for score in message.scores]
    assert firsts == [1, size + 1, 2 * size + 1, 2 * size + 2]
    assert token_ids == list(range(1, 2 * size + 4)), "no token twice, none left out"


def test_a_mean_is_said_once_when_all_its_rows_are_there() -> None:
    reading = JobReading(reading=PoolPrompt(kind="mean"), num_prompt=4)
    reading.add_rows(0, SummedRows(num_rows=3, values=array("d", [3.0, -6.0])))
    assert reading.take_messages(OF) == []
    reading.add_rows(3, SummedRows(num_rows=1, values=array("d", [1.0, 2.0])))
    values = array("f", [1.0, -1.0]).tobytes()
    assert reading.take_messages(OF) == [
        PromptVector(request=RequestId("r"), attempt=2, values=values)
    ]
    assert reading.take_messages(OF) == []
