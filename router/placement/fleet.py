"""All workers as placement sees them: a row of numbers each, by slot, kept up to date by reports.

Pure: time is a value. A row says what its worker said last and what was sent there since, never
what is true now. Slots are dense, and used again once their worker is gone.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from protocol.ids import Epoch, WorkerId
from protocol.messages import (
    Load,
    PrefixSource,
    Registration,
    ServedVersion,
    Speeds,
    StepModel,
    TransportUse,
)
from router.placement.row import NUM_PEERS, ROW, Rows

PRIOR_STEP = StepModel(fixed_s=0.005, token_s=5e-4, attended_s=0.0, sequence_s=0.001)
PRIOR_TRANSFER_BYTES_PER_S = 1e9
PRIOR_TRANSFER_LATENCY_S = 0.002
"""Used until any worker has measured its own: a small model on two CPU cores, and a hand-over of
three messages and a lease."""
BATCH_PART = 0.05
"""How much one more sequence lengthens a decode step where no step model says it (batch 8 takes
1.35 times batch 1)."""
GUESS_S = 1.0
"""How long the means of measured workers serve for those that have measured nothing."""
_STEP = ("fixed_s", "token_s", "attended_s", "sequence_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker has to do by its last report, and what that report does not count."""

    load: Load
    free_share: float
    """Of its blocks, those held by nobody; those with a cached prefix included."""
    reported_at_s: float
    queue_s: float
    """To compute the waiting tokens of `load`."""
    sent_prompts: Sequence[tuple[float, float]] = ()
    """When a prompt that it is to compute was sent since, and the seconds that it takes; in
    order."""
    num_sent: int = 0
    num_sent_tokens: int = 0
    """Contexts of all requests sent since or still on their way: the KV room they will take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """How workers of one compat hash name their blocks (`protocol.blocks`)."""

    compat: str
    block_tokens: int
    dynamic_after: int | None
    """As of `protocol.blocks.prompt_reach`."""


class Fleet:
    """`ready[slot]` is 1 for a worker that may get requests, `rows[slot]` its numbers."""

    def __init__(self, *, order: Callable[[WorkerId], int | str] = str) -> None:
        """Of workers that are equally good the first by `order` is chosen, by its name or another:
        routers that share workers should not all begin with the same one."""
        self._order = order
        self.rows: Rows = np.zeros(16, ROW)
        self.ready: NDArray[np.uint8] = np.zeros(16, np.uint8)
        self.names: list[WorkerId | None] = []
        self.name_hashes: NDArray[np.uint64] = np.zeros(16, np.uint64)
        """The same for every router."""
        self.not_indexed: set[int] = set()
        """Slots that the prefix index has no place for yet."""
        self.compats: dict[str, int] = {}
        """Numbers of compat hashes; few come in a router's life."""
        self.chains: dict[str, Chain] = {}
        """Of the workers that are here, by compat hash."""
        self.versions: NDArray[np.int32] = np.zeros(16, np.int32)
        """By slot, a number of what its worker serves."""
        self._version_numbers: dict[ServedVersion, int] = {}
        """Few come in a router's life."""
        self._num_workers_of: Counter[tuple[int, str]] = Counter()
        """By version and compat hash."""
        self._slots: dict[WorkerId, int] = {}
        self._lending: dict[int, tuple[Epoch, str]] = {}
        self._free: list[int] = []
        self._transports: dict[str, int] = {}
        self._no_step: set[int] = set()
        self._no_transfer: set[int] = set()
        self._guessed_at_s: float | None = None

    @property
    def num_slots(self) -> int:
        return len(self.names)

    def slot_of(self, worker: WorkerId) -> int | None:
        return self._slots.get(worker)

    def name_of(self, slot: int) -> WorkerId:
        name = self.names[slot]
        assert name is not None, f"slot {slot} is empty"
        return name

    def ready_of(self, version: ServedVersion | None) -> NDArray[np.uint8]:
        """By slot, 1 for the ready workers of that version; None: of any."""
        if version is None:
            return self.ready
        number = self._version_numbers.get(version, -1)
        ready: NDArray[np.uint8] = self.ready * (self.versions == number)
        return ready

    def chains_of(self, version: ServedVersion | None) -> list[Chain]:
        """Of its workers that are here; None: of all."""
        if version is None:
            return list(self.chains.values())
        number = self._version_numbers.get(version, -1)
        return [self.chains[compat] for of, compat in self._num_workers_of if of == number]

    def chain_of(self, slot: int) -> Chain:
        return self.chains[self._compat_of(slot)]

    def depths_of(self, slot: int, depths: NDArray[np.uint32]) -> tuple[int, int]:
        """Of `depths` by slot of the prefix index, its own, and the most of any of its compat
        hash."""
        rows = self.rows[: self.num_slots]
        at = rows["index_slot"]
        like = (rows["compat"] == rows["compat"][slot]) & (at >= 0) & (at < len(depths))
        own = int(depths[at[slot]]) if like[slot] else 0
        return own, int(depths[at[like]].max(initial=0))

    def prefix_source(self, slot: int, *, num_tokens: int) -> PrefixSource:
        """To fetch the prompt's first `num_tokens`, whole blocks of it, from that worker."""
        epoch, address = self._lending[slot]
        return PrefixSource(
            worker=self.name_of(slot), epoch=epoch, address=address, num_tokens=num_tokens
        )

    def add_worker(self, registration: Registration) -> int:
        """Its slot. Another incarnation of the same name must have been removed."""
        assert registration.worker not in self._slots, f"{registration.worker} has a slot"
        slot = self._free.pop() if self._free else self._new_slot()
        self.names[slot] = registration.worker
        self.name_hashes[slot] = xxhash.xxh3_64_intdigest(registration.worker.encode())
        self._slots[registration.worker] = slot
        self.not_indexed.add(slot)
        self._lending[slot] = registration.epoch, registration.kv_address
        self._describe(slot, registration)
        number = self._version_numbers.setdefault(registration.version, len(self._version_numbers))
        self.versions[slot] = number
        self._num_workers_of[number, registration.compat] += 1
        self.chains[registration.compat] = Chain(
            compat=registration.compat,
            block_tokens=registration.layout.block_tokens,
            dynamic_after=registration.dynamic_after,
        )
        self._no_step.add(slot)
        self._no_transfer.add(slot)
        self._membership_changed()
        return slot

    def remove_worker(self, slot: int) -> None:
        del self._slots[self.name_of(slot)]
        self._forget_chain(int(self.versions[slot]), self._compat_of(slot))
        self.names[slot] = None
        self.ready[slot] = 0
        self.rows[slot] = np.zeros((), ROW)
        peers = self.rows["peers"]
        peers[peers == slot] = -1
        self._no_step.discard(slot)
        self._no_transfer.discard(slot)
        self.not_indexed.discard(slot)
        self._free.append(slot)
        self._membership_changed()

    def set_index_slot(self, slot: int, index_slot: int) -> None:
        """Where the prefix index counts its blocks."""
        self.rows["index_slot"][slot] = index_slot
        self.not_indexed.discard(slot)

    def set_work(self, slot: int, work: Work) -> None:
        row, load = self.rows[slot], work.load
        row["reported_at_s"] = work.reported_at_s
        row["waiting_tokens"] = load.waiting_tokens
        row["running"] = load.running + load.waiting + work.num_sent
        row["context_tokens"] = load.context_tokens + work.num_sent_tokens
        free_tokens = float(row["pool_tokens"]) * work.free_share - work.num_sent_tokens
        row["free_tokens"] = max(0.0, free_tokens)
        busy_until_s = work.reported_at_s + work.queue_s
        for sent_at_s, prefill_s in work.sent_prompts:
            busy_until_s = max(busy_until_s, sent_at_s) + prefill_s
        row["busy_until_s"] = busy_until_s

    def set_speeds(self, slot: int, speeds: Speeds, uses: Sequence[TransportUse]) -> None:
        """What it measured; what it has not is guessed by `guess_speeds`."""
        step = _step_model(speeds)
        if step is not None:
            for name in _STEP:
                self.rows[name][slot] = getattr(step, name)
            self._no_step.discard(slot)
        if speeds.transfer_bytes_per_s > 0:
            self.rows["bytes_per_s"][slot] = speeds.transfer_bytes_per_s
            self.rows["latency_s"][slot] = speeds.transfer_latency_s or PRIOR_TRANSFER_LATENCY_S
            self._no_transfer.discard(slot)
        self._set_peers(slot, uses)

    def guess_speeds(self, *, now: float) -> None:
        """Who has measured nothing is taken for the mean of those of its version that have,
        whatever their role, else for that of all; where nobody has, for a small model on a CPU."""
        if not self._no_step and not self._no_transfer:
            return
        if self._guessed_at_s is not None and now < self._guessed_at_s + GUESS_S:
            return
        self._guessed_at_s = now
        self._guess_all()

    def _guess_all(self) -> None:
        priors = {name: getattr(PRIOR_STEP, name) for name in _STEP}
        self._guess(self._no_step, priors)
        latency_s, bytes_per_s = PRIOR_TRANSFER_LATENCY_S, PRIOR_TRANSFER_BYTES_PER_S
        self._guess(self._no_transfer, {"latency_s": latency_s, "bytes_per_s": bytes_per_s})

    def _guess(self, unmeasured: set[int], priors: dict[str, float]) -> None:
        measured = np.array([s for s in self._slots.values() if s not in unmeasured], np.int64)
        guessed = np.array(sorted(unmeasured), np.int64)
        for version in np.unique(self.versions[guessed]):
            like = measured[self.versions[measured] == version]
            models = like if len(like) else measured
            to = guessed[self.versions[guessed] == version]
            for name, prior in priors.items():
                column = self.rows[name]
                column[to] = column[models].mean() if len(models) else prior

    def _new_slot(self) -> int:
        self.names.append(None)
        if len(self.names) > len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
            self.ready = np.concatenate([self.ready, np.zeros_like(self.ready)])
            self.versions = np.concatenate([self.versions, np.zeros_like(self.versions)])
            hashes = self.name_hashes
            self.name_hashes = np.concatenate([hashes, np.zeros_like(hashes)])
        return len(self.names) - 1

    def _describe(self, slot: int, registration: Registration) -> None:
        """What a worker registers. A token is counted as if it took a place in each KV group's
        blocks; one whose layers see windows holds longer sequences than that, and says what it
        takes by `max_context_tokens`."""
        row, layout = self.rows[slot], registration.layout
        block_tokens, num_groups = layout.block_tokens, layout.num_groups
        longest_blocks = -(-registration.max_context_tokens // block_tokens)
        num_blocks = max(longest_blocks, registration.num_blocks // num_groups)
        row["is_decode"] = registration.role == "decode"
        row["compat"] = self.compats.setdefault(registration.compat, len(self.compats))
        row["index_slot"] = -1
        row["lends"] = registration.kv_address != ""
        row["token_bytes"] = layout.token_bytes * num_groups
        row["block_tokens"] = block_tokens
        row["max_step_tokens"] = registration.max_step_tokens or registration.max_context_tokens
        row["pool_tokens"] = num_blocks * block_tokens
        row["longest_tokens"] = min(registration.max_context_tokens, num_blocks * block_tokens)
        row["transports"] = sum(1 << self._transport(name) for name in registration.transports)

    def _compat_of(self, slot: int) -> str:
        number = int(self.rows["compat"][slot])
        return next(name for name, known in self.compats.items() if known == number)

    def _forget_chain(self, version: int, compat: str) -> None:
        self._num_workers_of[version, compat] -= 1
        if not self._num_workers_of[version, compat]:
            del self._num_workers_of[version, compat]
        if not any(compat == one for _, one in self._num_workers_of):
            del self.chains[compat]

    def _transport(self, name: str) -> int:
        number = self._transports.setdefault(name, len(self._transports))
        assert number < 64, f"more than 64 transports: {sorted(self._transports)}"
        return number

    def _set_peers(self, slot: int, uses: Sequence[TransportUse]) -> None:
        """Of a peer reached by several transports, the one used last counts."""
        pairs: dict[int, TransportUse] = {}
        for use in uses:
            peer = self._slots.get(use.peer)
            if peer is not None and use.bytes_per_s > 0 and len(pairs) < NUM_PEERS:
                pairs.setdefault(peer, use)
        row = self.rows[slot]
        row["num_peers"] = len(pairs)
        for index, (peer, use) in enumerate(pairs.items()):
            row["peers"][index] = peer
            row["peer_latency_s"][index] = use.latency_s
            row["peer_bytes_per_s"][index] = use.bytes_per_s

    def _membership_changed(self) -> None:
        self._guessed_at_s = None
        self._guess_all()
        for rank, name in enumerate(sorted(self._slots, key=self._order)):
            self.rows["rank"][self._slots[name]] = rank


def _step_model(speeds: Speeds) -> StepModel | None:
    """Of the calibrated worker, else of its mean speeds, else none."""
    if any(getattr(speeds.step, name) > 0 for name in _STEP):
        return speeds.step
    if speeds.prefill_tokens_per_s <= 0:
        return None
    return StepModel(
        fixed_s=speeds.decode_step_s,
        token_s=1 / speeds.prefill_tokens_per_s,
        sequence_s=BATCH_PART * speeds.decode_step_s,
    )
