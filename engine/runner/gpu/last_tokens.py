"""The tokens of the newest steps, on the device: the next step takes them before the host has.

Every step has a part of the buffer until `depth` further steps were launched; by then its tokens
have been read, and a chunk carries them itself.
"""

# Shapes: T tokens, R rows sampled, P places, N of them looked up.

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.batch import PENDING, Chunk, SequenceId
from engine.runner.gpu.arrays import NO_FEED
from engine.runner.gpu.device import Device


class LastTokens:
    def __init__(self, device: Device, *, max_rows: int) -> None:
        self._depth, self._max_rows = device.depth, max_rows
        self._num_steps = 0
        self._recent: deque[dict[SequenceId, int]] = deque(maxlen=device.depth)
        """Places of each step's sequences, the newest step first."""
        self.nowhere = device.depth * max_rows
        """A place that nobody reads."""
        self._tokens_P = torch.zeros(self.nowhere + 1, dtype=torch.int64, device=device.where)

    def reserve_places(self, chunks: Sequence[Chunk]) -> tuple[list[int], list[int]]:
        """Where each chunk's pending token lies (or NO_FEED), and where the tokens of those that
        sample are to go. Once for each step, in order.

        Raises ValueError for a pending token that no step in flight samples.
        """
        feeds = [self._feed(chunk) for chunk in chunks]
        first = self._num_steps % self._depth * self._max_rows
        asking = [chunk.sequence for chunk in chunks if chunk.sampling is not None]
        if len(asking) > self._max_rows:
            raise ValueError(f"{len(asking)} sequences sample in one step of {self._max_rows}")
        self._num_steps += 1
        self._recent.appendleft({sequence: first + row for row, sequence in enumerate(asking)})
        return feeds, list(self._recent[0].values())

    def pending_places(self, chunk: Chunk) -> list[int]:
        """Where its `pending` tokens lie, while its own step has no places yet. Raises ValueError
        as `reserve_places`."""
        found = [places[chunk.sequence] for places in self._recent if chunk.sequence in places]
        if len(found) < chunk.pending:
            raise _not_sampled(chunk)
        return found[: chunk.pending]

    def tokens_at(self, place_N: Tensor) -> Tensor:
        return self._tokens_P[place_N]

    def with_pending(self, token_ids_T: Tensor, feed_T: Tensor) -> Tensor:
        """`token_ids_T` with the pending ones in their places."""
        return torch.where(feed_T == NO_FEED, token_ids_T, self._tokens_P[feed_T.clamp(min=0)])

    def keep_tokens(self, tokens_R: Tensor, keep_R: Tensor) -> None:
        """A row without a token keeps 0: its sequence ends when the host reads that, and the step
        launched meanwhile must not look up an id that is none."""
        self._tokens_P.index_copy_(0, keep_R, tokens_R.clamp(min=0))

    def _feed(self, chunk: Chunk) -> int:
        if PENDING not in chunk.token_ids:
            return NO_FEED
        for places in self._recent:
            if chunk.sequence in places:
                return places[chunk.sequence]
        raise _not_sampled(chunk)


def _not_sampled(chunk: Chunk) -> ValueError:
    return ValueError(f"chunk {chunk.sequence}: no launched step samples its pending token")
