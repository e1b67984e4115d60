"""What is served at one moment, immutable, and what answers a name then. Pure, for any thread."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.models.choice import weighted_choice
from router.models.model_text import ChosenModel, ListedModel, ModelText
from router.models.model_unknown import ModelAway, UnknownModel

LEAST_PREFIX = 6
"""Characters of a revision that name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailableVersion:
    """That requests may be for now."""

    text: ModelText
    num_decode_workers: int
    """That are ready; at least 1."""
    context_tokens: int
    """The longest that any of them takes."""

    @property
    def revision(self) -> str:
        return self.text.version.revision

    @property
    def key(self) -> str:
        """Alike in every router."""
        version = self.text.version
        return f"{version.model}@{version.revision} {version.text}"


Aliases = Mapping[str, Mapping[str, float]]
"""What each stands for (a model or `MODEL@REVISION`), and the weight of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSnapshot:
    models: Mapping[str, tuple[AvailableVersion, ...]] = field(default_factory=dict)
    """By name; one without any is known, and away."""
    away: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Revisions of those models that are known, and that nothing can be asked of."""
    aliases: Aliases = field(default_factory=dict)
    coming: frozenset[str] = frozenset()
    """Models of workers that load; "" for one of which that is not known yet."""

    def choose(self, name: str | None, key: str) -> ChosenModel:
        """As `Models.choose`."""
        found = self.of_name(name)
        if not found:
            raise ModelAway(
                name, f"no ready decode worker of {name or 'any model'}, or not its text"
            )
        picked, named = self._pick(name, key), name or found[0].text.version.model
        return ChosenModel(name=named, text=picked.text, context_tokens=picked.context_tokens)

    def of_name(self, name: str | None) -> tuple[AvailableVersion, ...]:
        """All that may answer it now. Raises UnknownModel for one that is not known."""
        targets = self._targets(name)
        if targets is None:
            return self._of_model(name or self._only())
        return tuple(one for target in targets for one in self._of_target(target))

    def listed(self) -> tuple[ListedModel, ...]:
        models = [_listed(name, found) for name, found in sorted(self.models.items())]
        aliases = [
            _listed(name, self.of_name(name), alias_for=targets)
            for name, targets in sorted(self.aliases.items())
        ]
        own = [one for one in models if one.name not in self.aliases]
        return (*own, *aliases)

    def models_of(self, name: str | None) -> tuple[str, ...]:
        """The models that it may be of, known or not. Empty where it may be of any."""
        if not name:
            return ()
        names = self.aliases.get(name, (name,))
        return tuple(one if one in self.models else one.rpartition("@")[0] or one for one in names)

    @property
    def is_empty(self) -> bool:
        """Nothing can be asked for."""
        return not any(self.models.values())

    def _pick(self, name: str | None, key: str) -> AvailableVersion:
        targets = self._targets(name)
        if targets is not None:
            here = {one: weight for one, weight in targets.items() if self._of_target(one)}
            found = self._of_target(weighted_choice(key, here))
        else:
            found = self.of_name(name)
        by_key = {one.key: one for one in found}
        return by_key[weighted_choice(key, {k: v.num_decode_workers for k, v in by_key.items()})]

    def _targets(self, name: str | None) -> Mapping[str, float] | None:
        """Of an alias, those that a request may be for; None for another name."""
        targets = self.aliases.get(name or "")
        return targets and {one: weight for one, weight in targets.items() if weight > 0}

    def _only(self) -> str:
        """What a request without a name is for: where several are known, nothing, whichever of them
        are here just now."""
        if len(self.models) > 1:
            raise UnknownModel(None, self._names())
        return next(iter(self.models), "")

    def _of_target(self, target: str) -> tuple[AvailableVersion, ...]:
        """As `_of_model`, empty for one that is not known."""
        try:
            return self._of_model(target)
        except UnknownModel:
            return ()

    def _of_model(self, name: str) -> tuple[AvailableVersion, ...]:
        if name in self.models:
            return self.models[name]
        model, at, revision = name.rpartition("@")
        if not at or model not in self.models or len(revision) < LEAST_PREFIX:
            if self._may_come(name):
                return ()
            raise UnknownModel(name, self._names())
        found = self.models[model]
        known = {one.revision for one in found} | self.away.get(model, frozenset())
        begun = {one for one in known if one.startswith(revision)}
        meant = begun if len(begun) == 1 else begun & {revision}
        if found and not meant and (begun or not self._may_come(name)):
            raise UnknownModel(name, self._names())
        return tuple(one for one in found if one.revision in meant)

    def _may_come(self, name: str) -> bool:
        """A name that nothing is known of; a router that has just begun knows of nothing."""
        return not self.models or not self.coming.isdisjoint(("", name, name.rpartition("@")[0]))

    def _names(self) -> list[str]:
        return [*sorted(self.models), *sorted(self.aliases.keys() - self.models.keys())]


def _listed(
    name: str, found: tuple[AvailableVersion, ...], *, alias_for: Mapping[str, float] | None = None
) -> ListedModel:
    revisions = () if alias_for else tuple(sorted({one.revision for one in found}))
    return ListedModel(
        name=name,
        context_tokens=max((one.context_tokens for one in found), default=None),
        revisions=revisions,
        alias_for=alias_for or {},
    )
