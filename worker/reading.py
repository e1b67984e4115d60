"""What one request has read of its prompt so far, as the messages that say so.

On the engine's thread.
"""

import sys
from array import array
from dataclasses import dataclass, field
from typing import assert_never

from engine.batch import RowsRead, ScoredRows, SummedRows
from protocol.messages import OfAttempt, PromptScores, PromptVector
from protocol.readings import PoolPrompt, PromptReading, TokenScore, rows_of

SCORES_A_MESSAGE = 64
"""With 20 alternatives each a router spends some milliseconds on them: its streams go on."""


@dataclass(slots=True, kw_only=True)
class JobReading:
    reading: PromptReading
    num_prompt: int
    _scores: list[TokenScore] = field(default_factory=list)
    """Not said yet."""
    _first: int = 0
    """Index of the first of them."""
    _sums: "array[float] | None" = None
    _num_rows: int = 0

    def add_rows(self, first: int, read: RowsRead) -> None:
        """As `engine.observer.EngineObserver.read`."""
        match read:
            case ScoredRows(scores=scores):
                if not self._scores:
                    self._first = first + 1
                self._scores += scores
            case SummedRows(num_rows=num_rows, values=values):
                sums = self._sums
                added = values if sums is None else map(float.__add__, sums, values)
                self._sums = array("d", added)
                self._num_rows += num_rows
            case _:
                assert_never(read)

    def take_messages(self, of: OfAttempt) -> list[PromptScores | PromptVector]:
        """What is new to say."""
        request, attempt = of.request, of.attempt
        scores, first, self._scores = self._scores, self._first, []
        messages = list[PromptScores | PromptVector]()
        for start in range(0, len(scores), SCORES_A_MESSAGE):
            piece = tuple(scores[start : start + SCORES_A_MESSAGE])
            messages.append(
                PromptScores(request=request, attempt=attempt, first=first + start, scores=piece)
            )
        due = len(rows_of(self.reading, num_prompt=self.num_prompt))
        if isinstance(self.reading, PoolPrompt) and self._sums and self._num_rows == due:
            values = _mean(self._sums, due)
            messages.append(PromptVector(request=request, attempt=attempt, values=values))
            self._sums = None
        return messages


def _mean(sums: "array[float]", num_rows: int) -> bytes:
    values = array("f", (value / num_rows for value in sums))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
