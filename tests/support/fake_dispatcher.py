"""A dispatcher without workers: it says a fixed reply, token by token, or fails as told.

Keeps the promises of `Dispatcher.generate`; text, stops and limits go through the real
`TextState`.
"""

import asyncio
from array import array
from collections.abc import Iterator

from protocol.errors import BatonError
from protocol.ids import RequestId, RouterId, WorkerId
from protocol.messages import FinishReason, ServedVersion, Token, TokenLogprob
from protocol.readings import PoolPrompt, TokenScore
from protocol.text.tokenizer import TextState, Tokenizer
from router.prefix.state import IndexState
from router.requests.events import (
    Ended,
    GenerationRequest,
    Pooled,
    Route,
    RouterEnds,
    Scored,
)
from router.requests.token_listener import TokenListener
from router.requests.trace import RequestTrace
from router.runtime import ClusterView

ROUTE = Route(
    reason="split; warm prefix", prefill=WorkerId("prefill-0"), decode=WorkerId("decode-0")
)
BEFORE_PLACED = -1


class FakeDispatcher:
    def __init__(self, tokenizer: Tokenizer, *, reply: str = "Hello there.") -> None:
        self.tokenizer = tokenizer
        self.tokenizers: dict[ServedVersion, Tokenizer] = {}
        """Of versions that have another."""
        self.reply = reply
        self.cached_tokens = 0
        self.vector = [3.0, 4.0, 0.0]
        """Of any pooled prompt."""
        self.failures: dict[int, BatonError | Exception] = {}
        """Raised instead of the token of this index; BEFORE_PLACED: instead of the route."""
        self.num_failures_left = 10**9
        self.hold_at: int | None = None
        """Wait for `release` before the token of this index."""
        self.release = asyncio.Event()
        self.requests: list[GenerationRequest] = []
        self.traces: dict[RequestId, RequestTrace] = {}
        self.num_active = self.most_active = 0
        self.num_aborted = 0
        self.stopped_by: int | str | None = None
        self.num_made = 0
        """Tokens told."""
        self._is_ending = False

    def end_requests(self) -> None:
        self._is_ending = True
        self.release.set()

    async def generate(self, request: GenerationRequest, listener: TokenListener) -> Ended:
        self.requests.append(request)
        self.num_active += 1
        self.most_active = max(self.most_active, self.num_active)
        finished = False
        try:
            self._fail(BEFORE_PLACED)
            listener.placed(ROUTE)
            for read in self._reads(request):
                listener.read(read)
            reason: FinishReason = "length"
            for token, stopped in self._tokens(request):
                if self.hold_at == token.index:
                    await self.release.wait()
                self._fail(token.index)
                reason = "stop" if stopped else "length"
                self.num_made += 1
                listener.token(token)
                await asyncio.sleep(0)  # others' turn, as between two steps
            finished = True
            trace = self._trace(request, reason)
            return Ended(
                finish_reason=reason,
                stopped_by=self.stopped_by,
                cached_tokens=self.cached_tokens,
                trace=trace,
            )
        except BatonError as error:
            finished = error in self.failures.values() or isinstance(error, RouterEnds)
            raise
        finally:
            self.num_active -= 1
            self.num_aborted += not finished

    def _fail(self, index: int) -> None:
        if self._is_ending:
            raise RouterEnds("this router ends")
        if index in self.failures and self.num_failures_left > 0:
            self.num_failures_left -= 1
            raise self.failures[index]

    def _reads(self, request: GenerationRequest) -> Iterator[Scored | Pooled]:
        """Of each token its place is the logprob, in pieces of two."""
        reading, ids = request.reading, request.token_ids
        if isinstance(reading, PoolPrompt):
            yield Pooled(values=array("f", self.vector).tobytes())
        elif reading is not None:
            scores = [
                TokenScore(
                    token_id=ids[place], logprob=-float(place), rank=1 + place,
                    top=tuple((ids[rank], -0.5 - rank) for rank in range(reading.num_top)),
                )
                for place in range(1, len(ids))
            ]  # fmt: skip
            for place in range(0, len(scores), 2):
                yield Scored(first=1 + place, scores=tuple(scores[place : place + 2]))

    def _tokens(self, request: GenerationRequest) -> Iterator[tuple[Token, bool]]:
        """The reply, repeated when told to go on, and then the end of the text."""
        sampling, tokenizer = request.sampling, self.tokenizer
        if request.version is not None:
            tokenizer = self.tokenizers.get(request.version, tokenizer)
        state = TextState(tokenizer, sampling)
        said = [*tokenizer.encode(self.reply), tokenizer.eos_token_ids[0]]
        for index in range(sampling.max_tokens):
            step = state.feed(said[index % len(said)])
            last = step.stopped or index == sampling.max_tokens - 1
            token = Token(
                index=index,
                token_id=said[index % len(said)],
                text=step.text + (state.flush() if last else ""),
                logprob=None if sampling.num_logprobs is None else -0.5,
                top=tuple(
                    TokenLogprob(token_id=said[(index + rank) % len(said)], logprob=-0.5 - rank)
                    for rank in range(sampling.num_logprobs or 0)
                ),
            )
            self.stopped_by = state.stopped_by
            yield token, step.stopped
            if last:
                return

    def _trace(self, request: GenerationRequest, outcome: str) -> RequestTrace:
        trace = self.traces[request.id] = RequestTrace(
            request=request.id,
            outcome=outcome,
            prompt_tokens=len(request.token_ids),
            output_tokens=0,
            cached_tokens=self.cached_tokens,
            placed_s=0.0,
            first_token_s=0.0,
            total_s=0.0,
            attempts=(),
        )
        return trace


class StubCluster:
    """A cluster that is whatever the test says, to one event loop only."""

    def __init__(self, dispatcher: FakeDispatcher) -> None:
        self._dispatcher = dispatcher
        self.reason: str | None = None
        self.shown = ClusterView(
            router=RouterId("router-0"), index=IndexState.EXACT, redis="none", workers=()
        )

    def not_ready(self) -> str | None:
        return self.reason

    def view(self) -> ClusterView:
        return self.shown

    def traces(self, request: RequestId) -> tuple[RequestTrace, ...]:
        found = self._dispatcher.traces
        return tuple(found[name] for name in found if name.split(".")[0] == request)
