"""What a request still lacks of its prompt's reading, and what waits for that.

A prompt may be read by one worker while another already says its tokens, or has said the last: the
tokens and the ending wait, so that the client is given what is of the prompt first. Pure.
"""

from dataclasses import dataclass, field

from protocol.messages import Emit, PromptScores, PromptVector
from protocol.readings import PromptReading, ScorePrompt
from router.requests.ending import EndWell
from router.requests.events import Pooled, Read, Scored


@dataclass(slots=True, kw_only=True)
class ReadingProgress:
    lacking: PromptReading | None
    """What no worker has said yet, for the next one to say."""
    num_prompt: int
    ending: EndWell | None = None
    """Why the last token was the last, once that is known."""
    _held: list[Emit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lack(self.lacking)

    def accept_token(self, token: Emit) -> list[Emit]:
        """What may be given to the client now."""
        if self.lacking is None:
            return [token]
        self._held.append(token)
        return []

    def accept_read(self, message: PromptScores | PromptVector) -> list[Read | Emit]:
        """What may be given to the client now. Raises ValueError for what was not asked for, or not
        due."""
        asked = self.lacking
        event: Read
        if isinstance(message, PromptVector):
            if asked is None or isinstance(asked, ScorePrompt):
                raise ValueError("a vector that nobody asked for")
            self._lack(None)
            event = Pooled(values=message.values)
        else:
            stop = message.first + len(message.scores)
            if not isinstance(asked, ScorePrompt):
                raise ValueError("scores that nobody asked for")
            if not message.first == asked.first < stop <= self.num_prompt:
                raise ValueError(f"tokens {message.first} to {stop} when {asked.first} was due")
            self._lack(ScorePrompt(first=stop, num_top=asked.num_top))
            event = Scored(first=message.first, scores=message.scores)
        return [event, *self._let_go()]

    def _lack(self, reading: PromptReading | None) -> None:
        """Of the last token's scores nothing follows."""
        if isinstance(reading, ScorePrompt) and reading.first >= self.num_prompt:
            reading = None
        self.lacking = reading

    def _let_go(self) -> list[Emit]:
        if self.lacking is not None:
            return []
        held, self._held = self._held, []
        return held
