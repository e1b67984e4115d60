"""What each layer of a model is made of: its window, its rope, whether it has experts.

Follows a family's rules (`engine.models.family`) and the keys of `config.json` that they name.
"""

from dataclasses import dataclass

from engine.models.family import Family, MixtureRule, WindowRule
from engine.models.json_fields import Fields
from engine.models.rope import Rope
from engine.models.rope_config import KINDS, LayerKind, read_ropes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    window: int | None
    """How many last tokens a token sees, itself included; None: all."""
    rope: Rope
    sparse: bool
    """A mixture of experts in place of the MLP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSpec:
    """Experts of every sparse layer, and how a token chooses among them."""

    rule: MixtureRule
    num_experts: int
    per_token: int
    size: int
    """Features of one expert."""
    renormalise: bool
    """The weights of a token's experts are made to sum to one."""
    shared_size: int | None
    """Features of the expert that all tokens share; None: there is none."""


def read_layers(
    fields: Fields, family: Family, *, head_dim: int, context: int
) -> tuple[LayerSpec, ...]:
    """For sequences of at most `context` tokens."""
    num_layers = fields.size("num_hidden_layers")
    ropes = read_ropes(fields, family, head_dim=head_dim, context=context)
    kinds = _kinds(fields, family.window, num_layers=num_layers)
    window = _window(fields, context) if "sliding_attention" in kinds else None
    sparse = _sparse(fields, family.mixture, num_layers=num_layers)
    return tuple(
        LayerSpec(
            window=window if kind == "sliding_attention" else None,
            rope=ropes[kind],
            sparse=layer in sparse,
        )
        for layer, kind in enumerate(kinds)
    )


def _window(fields: Fields, context: int) -> int | None:
    """None where it reaches the whole context: then nothing leaves it."""
    window = fields.size("sliding_window")
    return window if window < context else None


def read_mixture(fields: Fields, rule: MixtureRule | None) -> MixtureSpec | None:
    if rule is None:
        return None
    names = ("num_experts", "num_local_experts")
    key = next((name for name in names if fields.raw.get(name) is not None), rule.count_key)
    num_experts, per_token = fields.size(key), fields.size("num_experts_per_tok")
    if per_token > num_experts:
        raise fields.error("num_experts_per_tok", f"is above {key}={num_experts}")
    by_key = rule.renormalise == "norm_topk_prob" and fields.flag("norm_topk_prob", False)
    return MixtureSpec(
        rule=rule,
        num_experts=num_experts,
        per_token=per_token,
        size=fields.size(rule.size_key),
        renormalise=by_key or rule.renormalise == "always",
        shared_size=fields.size("shared_expert_intermediate_size") if rule.shared else None,
    )


def _kinds(fields: Fields, rule: WindowRule | None, *, num_layers: int) -> tuple[LayerKind, ...]:
    on = rule is not None and (rule.flag is None or fields.flag(rule.flag, False))
    on = on and fields.get("sliding_window") is not None
    named = fields.get("layer_types") if rule is not None and rule.typed else None
    if named is not None:
        allowed = [*KINDS] if on else ["full_attention"]
        known = isinstance(named, list) and all(kind in allowed for kind in named)
        if not isinstance(named, list) or not known or len(named) != num_layers:
            raise fields.error("layer_types", f"must be {num_layers} of {allowed}")
        return tuple(named)
    if rule is None or not on:
        return (KINDS[0],) * num_layers
    slides = _sliding(fields, rule, num_layers=num_layers)
    return tuple(KINDS[1] if layer in slides else KINDS[0] for layer in range(num_layers))


def _sliding(fields: Fields, rule: WindowRule, *, num_layers: int) -> set[int]:
    every = rule.full_every
    if rule.full_every_key is not None:
        every = fields.optional_size(rule.full_every_key) or every
    layers = {layer for layer in range(num_layers) if every is None or (layer + 1) % every}
    if rule.bound == "none":
        return layers
    bound = int(fields.number("max_window_layers"))
    return {layer for layer in layers if (layer >= bound) == (rule.bound == "from")}


def _sparse(fields: Fields, rule: MixtureRule | None, *, num_layers: int) -> set[int]:
    if rule is None:
        return set()
    if not rule.stepped:
        return set(range(num_layers))
    step, dense = fields.size("decoder_sparse_step"), fields.get("mlp_only_layers") or ()
    if not isinstance(dense, list | tuple) or not all(isinstance(one, int) for one in dense):
        raise fields.error("mlp_only_layers", f"must be a list of layers, is {dense!r}")
    return {layer for layer in range(num_layers) if (layer + 1) % step == 0} - set(dense)
