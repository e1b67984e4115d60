"""What `/v1/models` tells of the names that requests may be for."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from protocol.errors import BatonError
from router.anthropic.models import model_shape, models_shape
from router.api.errors import as_api_error
from router.models.model_text import ListedModel, Models


class ModelListing:
    """For the event loop."""

    def __init__(self, models: Models, *, since: int) -> None:
        """`since`: unix seconds, told as when each was made."""
        self._models = models
        self._since = since

    def shapes(self, *, is_anthropic: bool) -> Mapping[str, Any]:
        """Models, then aliases."""
        shown = [self._shape(one, is_anthropic) for one in self._models.listed()]
        return models_shape(shown) if is_anthropic else {"object": "list", "data": shown}

    def shape(self, name: str, *, is_anthropic: bool) -> Mapping[str, Any]:
        """Of one name, a revision's too. Raises ApiError 404, and 503 for what is away."""
        listed = next((one for one in self._models.listed() if one.name == name), None)
        return self._shape(listed or self._revision(name), is_anthropic)

    def _revision(self, name: str) -> ListedModel:
        try:
            chosen = self._models.choose(name, "")
        except BatonError as error:
            raise as_api_error(error) from error
        return ListedModel(
            name=name,
            context_tokens=chosen.context_tokens,
            revisions=(chosen.text.version.revision,),
        )

    def _shape(self, one: ListedModel, is_anthropic: bool) -> dict[str, Any]:
        if is_anthropic:
            return model_shape(one.name, since=self._since, context=one.context_tokens)
        shape = {
            "id": one.name,
            "object": "model",
            "created": self._since,
            "owned_by": "baton",
            "max_model_len": one.context_tokens,
        }
        if one.alias_for:
            return shape | {"baton": {"alias_for": dict(one.alias_for)}}
        ours = {"revisions": list(one.revisions)}
        return shape | {"default_sampling_params": self._defaults(one.name), "baton": ours}

    def _defaults(self, name: str) -> dict[str, Any]:
        """Empty where they are not known now."""
        try:
            return asdict(self._models.choose(name, "").text.sampling_defaults)
        except BatonError:
            return {}
