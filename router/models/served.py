"""All that is served, as workers come and go: the owner of what the HTTP surface chooses from."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from math import inf

from msgspec.structs import astuple

from protocol.messages import ServedVersion
from router.models.model_text import ChosenModel, ListedModel
from router.models.model_unknown import ModelAway, UnknownModel
from router.models.snapshot import Aliases, AvailableVersion, ServedSnapshot
from router.models.texts import Texts
from router.requests.events import RouterEnds
from router.workers.registry import Registry

LOOK_AGAIN_S = 0.5
REMEMBERED_S = 600.0
"""A model or revision whose last worker is gone is away for so long, and then unknown."""
_Revision = tuple[str, str]
"""A model's name and one of its revisions."""
log = logging.getLogger("baton.models")


class ServedModels:
    """`router.models.model_text.Models`. What is chosen from is one immutable snapshot, replaced as
    a whole in the event loop whenever a worker changes its state, a text is read or the aliases
    change; so any thread may read it."""

    def __init__(
        self,
        registry: Registry,
        texts: Texts,
        *,
        patience_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._texts = texts
        self._patience_s = patience_s
        self._clock = clock
        self._aliases: Aliases = {}
        self._snapshot = ServedSnapshot()
        self._left_at: dict[_Revision, float] = {}
        """When one was last seen to become away."""
        self._changed = asyncio.Event()
        self._is_ending = False
        registry.listeners.append(self._renew)
        texts.changed = self._renew

    def choose(self, name: str | None, key: str) -> ChosenModel:
        return self._snapshot.choose(name, key)

    def listed(self) -> tuple[ListedModel, ...]:
        return self._snapshot.listed()

    def not_ready(self) -> str | None:
        if not self._snapshot.is_empty:
            return None
        if (why := self._registry.why_not_served(within_s=self._patience_s)) is not None:
            return why
        if self._registry.not_ready() is not None or self._was_left_within(self._patience_s):
            return None  # requests wait for a worker, or only for a text
        texts = {one.registration.text for one in self._registry.ready_workers()}
        missing = (self._texts.why_missing(text) for text in sorted(texts))
        return next(missing, "no model is served")

    def why_no_text(self, digest: str) -> str:
        """Of a worker's model; "" if it has been read."""
        return self._texts.why_missing(digest)

    def use_aliases(self, aliases: Aliases) -> None:
        """These from now on."""
        self._aliases = aliases
        self._renew()

    async def run(self) -> None:
        """Fetches texts, until cancelled."""
        await self._texts.run()

    async def wait_change(self, *, timeout_s: float) -> None:
        """Until something else may be chosen; TimeoutError when nothing does in time."""
        async with asyncio.timeout(timeout_s):
            await self._changed.wait()

    def end_waits(self) -> None:
        """Those that `wait_for` a model, and any that still come, fail with RouterEnds."""
        self._is_ending = True
        self._note_change()

    async def wait_for(self, name: str | None) -> None:
        deadline = self._clock() + self._patience_s
        while not self._is_available(name):
            if self._is_ending:
                raise RouterEnds("this router ends")
            remaining_s = deadline - self._clock()
            if remaining_s <= 0 or not self._is_expected(name):
                raise ModelAway(name, f"no decode worker of {name or 'any model'} is ready")
            with suppress(TimeoutError):  # what is expected may also just cease to be
                await self.wait_change(timeout_s=min(remaining_s, LOOK_AGAIN_S))

    def _was_left_within(self, within_s: float) -> bool:
        """Whether something was served so short a time ago."""
        return self._clock() < max(self._left_at.values(), default=-inf) + within_s

    def _is_available(self, name: str | None) -> bool:
        try:
            return bool(self._snapshot.of_name(name))
        except UnknownModel:
            return False

    def _is_expected(self, name: str | None) -> bool:
        """Whether a worker of it is on its way, or only its text is."""
        models = self._snapshot.models_of(name)
        ready = (one.registration for one in self._registry.ready_workers())
        decode = (one for one in ready if one.role == "decode")
        waiting = (one.model for one in decode if self._texts.is_on_the_way(one.text))
        if any(not models or model in models for model in waiting):
            return True
        within_s = self._patience_s
        soon = (self._registry.may_serve_soon(one, within_s=within_s) for one in models or (None,))
        return any(soon)

    def _renew(self) -> None:
        """Reads the registry anew."""
        models: dict[str, tuple[AvailableVersion, ...]] = {}
        for version, contexts in self._decoding():
            if (read := self._texts.find(version.text)) is not None:
                available = AvailableVersion(
                    text=read.of_version(version),
                    num_decode_workers=len(contexts),
                    context_tokens=min(max(contexts), read.tokenizer.max_context_tokens),
                )
                models[version.model] = (*models.get(version.model, ()), available)
        away: dict[str, frozenset[str]] = {}
        for model, revision in self._away(_revisions(models)):
            models.setdefault(model, ())
            away[model] = away.get(model, frozenset()) | {revision}
        self._snapshot = ServedSnapshot(
            models=models,
            away=away,
            aliases=self._aliases,
            coming=self._registry.coming_models,
        )
        linked = (one for one in self._registry.workers if one.connection is not None)
        self._texts.want({one.registration.text for one in linked if one.registration.text})
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _decoding(self) -> list[tuple[ServedVersion, list[int]]]:
        """Versions that have ready decode workers, in an order of their own, and the longest
        contexts of those."""
        found: dict[ServedVersion, list[int]] = defaultdict(list)
        for worker in self._registry.ready_workers():
            if worker.role == "decode":
                registration = worker.registration
                found[registration.version].append(registration.max_context_tokens)
        return sorted(found.items(), key=lambda item: astuple(item[0]))

    def _away(self, available: Set[_Revision]) -> Set[_Revision]:
        """Those of which a worker is here in whatever state, or was a while ago, and that nothing
        can be asked of."""
        now, before = self._clock(), _revisions(self._snapshot.models)
        here = {
            (one.registration.model, one.registration.revision) for one in self._registry.workers
        }
        self._left_at |= dict.fromkeys(before - available, now)
        left = self._left_at.items()
        self._left_at = {one: at for one, at in left if one in here or now - at < REMEMBERED_S}
        return (here | self._left_at.keys()) - available


def _revisions(models: Mapping[str, Iterable[AvailableVersion]]) -> Set[_Revision]:
    return {(name, one.revision) for name, found in models.items() for one in found}
