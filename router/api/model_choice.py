"""Which model answers one HTTP request: chosen once its body has said a name."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import quote

from router.api.errors import as_api_error
from router.models.model_text import ChosenModel, Models
from router.models.model_unknown import ModelAway, UnknownModel

MODEL_HEADER = "x-baton-model"
"""Of an answer: `NAME@REVISION`, which a request may ask for in its turn."""
Choose = Callable[[str | None], ChosenModel]
"""As `Models.choose`, for one request: raises ApiError 404 and ModelAway. From any thread."""
Watch = Callable[[Coroutine[Any, Any, None]], Awaitable[None]]
"""Waits as it is told while the client is there; raises ClientGone when it is not."""
T = TypeVar("T")


class ModelChoice:
    """Equal `key`s get the same, as of `Models.choose`."""

    def __init__(self, models: Models, key: str) -> None:
        self._models = models
        self._key = key
        self._asked: str | None = None
        self._chosen: ChosenModel | None = None
        self.waited_s = 0.0
        """For a model that was away."""

    def choose(self, name: str | None) -> ChosenModel:
        self._asked = name
        try:
            self._chosen = self._models.choose(name, self._key)
        except UnknownModel as error:
            raise as_api_error(error) from error
        return self._chosen

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer. What no header may have is written as in an URL."""
        if self._chosen is None:
            return {}
        version = self._chosen.text.version
        return {MODEL_HEADER: quote(f"{version.model}@{version.revision}", safe="/@:+ ")}

    def is_other_now(self, *, if_away: bool) -> bool:
        """Whether another version than before would be chosen; `if_away`: or none just now."""
        assert self._chosen is not None, "nothing was chosen"
        try:
            now = self._models.choose(self._asked, self._key)
        except ModelAway:
            return if_away
        except UnknownModel:
            return False
        return now.text.version != self._chosen.text.version

    async def made(self, make: Callable[[], Awaitable[T]], *, within_s: float, watched: Watch) -> T:
        """`make()`, which chooses; of a model that is away, when it is here, within so many
        seconds. On the event loop. Raises what `make` and `watched` do, ModelAway too."""
        now = asyncio.get_running_loop().time
        ends_at = now() + within_s
        while True:
            try:
                return await make()
            except ModelAway as away:
                since = now()
                if since >= ends_at:
                    raise
                try:
                    async with asyncio.timeout_at(ends_at):
                        await watched(self._wait())
                except TimeoutError:
                    raise away from None
                finally:
                    self.waited_s += now() - since

    async def _wait(self) -> None:
        await self._models.wait_for(self._asked)
