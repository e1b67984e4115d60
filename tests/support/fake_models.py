"""`router.models.model_text.Models` over texts that a test names: nobody fetches anything."""

import asyncio
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from protocol.formats.choose import choose_formats
from protocol.messages import ServedVersion
from protocol.text.tokenizer import Tokenizer
from router.models.model_text import ChosenModel, ListedModel, ModelText
from router.models.model_unknown import ModelAway, UnknownModel

REVISION = "0123456789abcdef"


def text_of(tokenizer: Tokenizer, *, model: str = "tiny", revision: str = REVISION) -> ModelText:
    return ModelText(
        version=ServedVersion(model=model, revision=revision, text=f"text of {model} {revision}"),
        tokenizer=tokenizer,
        formats=choose_formats(tokenizer),
    )


class FakeModels:
    """Of each name, `key`s are spread over its revisions."""

    def __init__(self, *texts: ModelText) -> None:
        self.texts = list(texts)
        self.aliases: dict[str, Mapping[str, float]] = {}
        self.context: int | None = None
        """That the workers take."""
        self.coming: dict[str, asyncio.Event] = {}
        """Names whose workers load: until their event there is none."""
        self.waiting: Counter[str] = Counter()
        """Requests that wait, by name."""

    @property
    def names(self) -> list[str]:
        return sorted({text.version.model for text in self.texts})

    def changed(self, **changes: Any) -> "FakeModels":
        """The same, but for `changes` of every text."""
        other = FakeModels(*(replace(text, **changes) for text in self.texts))
        other.aliases, other.context, other.coming = self.aliases, self.context, self.coming
        return other

    def choose(self, name: str | None, key: str) -> ChosenModel:
        served = [*self.names, *sorted(self.aliases)]
        asked = name or (self.names[0] if len(self.names) == 1 else None)
        if asked in self.aliases:
            targets = self.aliases[asked]
            spread = [one for one, weight in targets.items() for _ in range(int(weight))]
            asked = spread[zlib.crc32(key.encode()) % len(spread)]
        if asked in self.coming and not self.coming[asked].is_set():
            raise ModelAway(name, f"{asked} is loading")
        model, _, revision = (asked or "").partition("@")
        found = [
            text
            for text in self.texts
            if text.version.model == model and text.version.revision.startswith(revision)
        ]
        if not found:
            raise UnknownModel(name or None, served)
        text = found[zlib.crc32(key.encode()) % len(found)]
        return ChosenModel(name=name or model, text=text, context_tokens=self._context(text))

    async def wait_for(self, name: str | None) -> None:
        self.waiting[name or ""] += 1
        try:
            async with asyncio.timeout(60):
                await self.coming[name or ""].wait()
        finally:
            self.waiting[name or ""] -= 1

    def listed(self) -> tuple[ListedModel, ...]:
        models = [
            ListedModel(
                name=name,
                context_tokens=max(self._context(one) for one in self._of(name)),
                revisions=tuple(sorted(one.version.revision for one in self._of(name))),
            )
            for name in self.names
        ]
        aliases = [
            ListedModel(name=name, context_tokens=self.context, alias_for=targets)
            for name, targets in sorted(self.aliases.items())
        ]
        return (*models, *aliases)

    def not_ready(self) -> str | None:
        return None if self.texts else "no model is served"

    def _of(self, name: str) -> list[ModelText]:
        return [text for text in self.texts if text.version.model == name]

    def _context(self, text: ModelText) -> int:
        most = text.tokenizer.max_context_tokens
        return most if self.context is None else min(most, self.context)
