"""What is told of a name that nothing can be asked of: no such model, or none of it now."""

from collections.abc import Sequence

from protocol.errors import BatonError
from router.requests.events import NoWorkers


class UnknownModel(BatonError):
    """No worker serves the model of that name, nor was one there a while ago. 404."""

    def __init__(self, name: str | None, served: Sequence[str]) -> None:
        """`name`: None where the request has none, and several are served."""
        super().__init__(f"{name!r} is not served; served: {', '.join(served) or 'nothing'}")
        self.name = name
        self.served = tuple(served)


class ModelAway(NoWorkers):
    """The model is known, and no worker that is ready, or not yet its text, is here: it may be a
    moment later (`Models.wait_for`). 503 with Retry-After."""

    def __init__(self, name: str | None, why: str) -> None:
        super().__init__(why)
        self.name = name
