"""All that is served, as workers come and go: the owner of what the HTTP surface chooses from."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from math import inf

from protocol.messages import ServedVersion
from router.models.model_text import ChosenModel, ListedModel
from router.models.model_unknown import ModelAway, UnknownModel
from router.models.snapshot import Aliases, AvailableVersion, Snapshot
from router.models.texts import Texts
from router.workers.registry import Registry
from router.workers.worker import KnownWorker

REMEMBERED_S = 600.0
"""A model whose last worker is gone is away for so long, and then unknown."""
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
        is_coming: Callable[[str | None], bool] = lambda name: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_coming`: whether a worker of that model (None: of any) is loading."""
        self._registry = registry
        self._texts = texts
        self._patience_s = patience_s
        self._is_coming = is_coming
        self._clock = clock
        self._aliases: Aliases = {}
        self._snapshot = Snapshot()
        self._left_at: dict[str, float] = {}
        """When a model was last seen to become away."""
        self._changed = asyncio.Event()
        registry.listeners.append(self._renew)
        texts.changed = self._renew

    def choose(self, name: str | None, key: str) -> ChosenModel:
        try:
            return self._snapshot.choose(name, key)
        except UnknownModel as error:
            if any(map(self._is_coming, self._snapshot.models_of(name))):
                raise ModelAway(name, f"a worker of {name} is loading") from error
            raise

    def listed(self) -> tuple[ListedModel, ...]:
        return self._snapshot.listed()

    def not_ready(self) -> str | None:
        if not self._snapshot.is_empty:
            return None
        texts = {one.registration.text for one in self._registry.ready_workers()}
        missing = (self._texts.why_missing(text) for text in sorted(texts))
        return self._registry.not_ready() or next(missing, "no model is served")

    def use_aliases(self, aliases: Aliases) -> None:
        """These from now on."""
        self._aliases = aliases
        self._renew()

    async def run(self) -> None:
        """Fetches texts, until cancelled."""
        await self._texts.run()

    async def wait_for(self, name: str | None) -> None:
        deadline = self._clock() + self._patience_s
        while not self._is_available(name):
            remaining_s = deadline - self._clock()
            if remaining_s <= 0 or not self._is_expected(name):
                raise ModelAway(name, f"no ready decode worker of {name or 'any model'}")
            try:
                async with asyncio.timeout(min(remaining_s, 0.5)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _is_available(self, name: str | None) -> bool:
        try:
            return bool(self._snapshot.of_name(name))
        except UnknownModel:
            return False

    def _is_expected(self, name: str | None) -> bool:
        """Whether something of it is on its way, or left so recently that it may be restarted."""
        names = self._snapshot.models_of(name)
        if any(map(self._is_coming, names or (None,))):
            return True
        now = self._clock()
        if any(now - self._left_at.get(one, -inf) < self._patience_s for one in names):
            return True
        here = (one.registration.model for one in self._registry.workers if _is_on_its_way(one))
        return any(not names or model in names for model in here)

    def _renew(self) -> None:
        """Reads the registry anew."""
        before, now = self._snapshot, self._clock()
        decoding: dict[ServedVersion, list[int]] = defaultdict(list)
        for worker in self._registry.ready_workers():
            if worker.role == "decode":
                registration = worker.registration
                decoding[registration.version].append(registration.max_context_tokens)
        models: dict[str, tuple[AvailableVersion, ...]] = {}
        for version, contexts in sorted(decoding.items(), key=lambda item: _order(item[0])):
            if (read := self._texts.find(version.text)) is not None:
                available = AvailableVersion(
                    text=read.of_version(version),
                    num_decode_workers=len(contexts),
                    context_tokens=min(max(contexts), read.tokenizer.max_context_tokens),
                )
                models[version.model] = (*models.get(version.model, ()), available)
        here = {one.registration.model for one in self._registry.workers}
        gone = {name for name, found in before.models.items() if found} - models.keys()
        self._left_at |= dict.fromkeys(gone, now)
        self._left_at = {
            name: at
            for name, at in self._left_at.items()
            if now - at < REMEMBERED_S or name in here
        }
        for name in here | self._left_at.keys():
            models.setdefault(name, ())
        self._snapshot = Snapshot(models=models, aliases=self._aliases)
        linked = (one for one in self._registry.workers if one.connection is not None)
        self._texts.want({one.registration.text for one in linked if one.registration.text})
        self._changed.set()
        self._changed = asyncio.Event()


def _is_on_its_way(worker: KnownWorker) -> bool:
    """It is no use yet, and may be."""
    return worker.state == "connecting" or (worker.state == "ready" and worker.role == "decode")


def _order(version: ServedVersion) -> tuple[str, str, str]:
    return version.model, version.revision, version.text
