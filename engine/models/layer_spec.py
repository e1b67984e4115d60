"""What each layer of a model is made of: its window, its rope, whether it has experts.

Follows a family's rules (`engine.models.families`) and the keys of `config.json` that they name.
"""

from dataclasses import dataclass

from engine.models.families.family import Family, MixtureRule, WindowRule
from engine.models.rope import Rope
from engine.models.rope_config import KINDS, LayerKind, read_ropes
from protocol.text.json_fields import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    window: int | None
    """How many last tokens a token sees, itself included; None: all."""
    rope: Rope | None
    """None: its heads do not turn."""
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
    jitter: float
    """Of "sparsemixer"."""
    shared_size: int | None
    """Features of the expert that all tokens share; None: there is none."""


def read_layers(
    fields: Fields, family: Family, *, head_dim: int, context: int
) -> tuple[LayerSpec, ...]:
    """For sequences of at most `context` tokens."""
    num_layers = fields.size("num_hidden_layers")
    if family.stateless:
        _refuse_states(fields, num_layers=num_layers)
    ropes = read_ropes(fields, family, head_dim=head_dim, context=context)
    unturned = _unturned(fields, family, num_layers=num_layers)
    kinds = _kinds(fields, family.window, unturned, num_layers=num_layers)
    if family.unturned == "full_attention" and fields.get("sliding_window") is not None:
        unturned = {layer for layer, kind in enumerate(kinds) if kind == "full_attention"}
    window = _window(fields, context) if "sliding_attention" in kinds else None
    sparse = _sparse(fields, family.mixture, num_layers=num_layers)
    return tuple(
        LayerSpec(
            window=window if kind == "sliding_attention" else None,
            rope=None if layer in unturned else ropes[kind],
            sparse=layer in sparse,
        )
        for layer, kind in enumerate(kinds)
    )


def _refuse_states(fields: Fields, *, num_layers: int) -> None:
    """Granite 4: layers that are not named are Mamba layers."""
    named = fields.get("layer_types") or ["mamba"] * num_layers
    if not isinstance(named, list) or len(named) != num_layers:
        raise fields.error("layer_types", f"must name {num_layers} layers")
    if kinds := {str(kind) for kind in named} - {"attention", "full_attention"}:
        problem = f"has {', '.join(sorted(kinds))}: layers that keep a state are not supported"
        raise fields.error("layer_types", problem)


def _unturned(fields: Fields, family: Family, *, num_layers: int) -> set[int]:
    """Layers that are named to have no rope."""
    everyone = range(num_layers)
    if family.unturned == "position_embedding_type":
        return set() if fields.get("position_embedding_type") == "rope" else set(everyone)
    if family.unturned != "no_rope_layers":
        return set()
    turned = fields.get("no_rope_layers")
    if turned is None:
        every = fields.size("no_rope_layer_interval")
        return {layer for layer in everyone if (layer + 1) % every == 0}
    if not isinstance(turned, list) or len(turned) < num_layers:
        raise fields.error("no_rope_layers", f"must be {num_layers} of 1 (rope) and 0")
    return {layer for layer in everyone if not turned[layer]}


def _window(fields: Fields, context: int) -> int | None:
    """None where it reaches the whole context: then nothing leaves it."""
    window = fields.size("sliding_window")
    return window if window < context else None


def read_mixture(fields: Fields, rule: MixtureRule | None) -> MixtureSpec | None:
    if rule is None:
        return None
    key = _count_key(fields, rule)
    if fields.get(key) == 0:
        return None
    num_experts, per_token = fields.size(key), fields.size("num_experts_per_tok")
    if per_token > num_experts:
        raise fields.error("num_experts_per_tok", f"is above {key}={num_experts}")
    mixes = rule.softmax == "sparsemixer"
    if mixes and per_token != 2:
        raise fields.error("num_experts_per_tok", f"= {per_token} is not supported; 2 is")
    by_key = rule.renormalise == "norm_topk_prob" and fields.flag("norm_topk_prob", False)
    shared = rule.shared is not None and fields.get(rule.shared.size_key) != 0
    return MixtureSpec(
        rule=rule,
        num_experts=num_experts,
        per_token=per_token,
        size=fields.size(rule.size_key),
        renormalise=by_key or rule.renormalise == "always",
        jitter=fields.number("router_jitter_noise") if mixes else 0.0,
        shared_size=fields.size(rule.shared.size_key) if rule.shared and shared else None,
    )


def _count_key(fields: Fields, rule: MixtureRule) -> str:
    names = rule.count_keys
    return next((name for name in names if fields.raw.get(name) is not None), names[-1])


def _kinds(
    fields: Fields, rule: WindowRule | None, unturned: set[int], *, num_layers: int
) -> tuple[LayerKind, ...]:
    on = rule is not None and (rule.flag is None or fields.flag(rule.flag, False))
    on = on and fields.get("sliding_window") is not None
    named = fields.get("layer_types") if rule is not None and rule.typed else None
    if isinstance(named, list):
        named = ["full_attention" if kind == "attention" else str(kind) for kind in named]
    if named is not None:
        allowed = [*KINDS] if on else ["full_attention"]
        known = isinstance(named, list) and all(kind in allowed for kind in named)
        if not isinstance(named, list) or not known or len(named) != num_layers:
            raise fields.error("layer_types", f"must be {num_layers} of {allowed}")
        return tuple(named)
    if rule is None or not on:
        return (KINDS[0],) * num_layers
    slides = _sliding(fields, rule, unturned, num_layers=num_layers)
    return tuple(KINDS[1] if layer in slides else KINDS[0] for layer in range(num_layers))


def _sliding(fields: Fields, rule: WindowRule, unturned: set[int], *, num_layers: int) -> set[int]:
    if rule.bound == "unturned":
        return unturned
    every = rule.full_every
    if rule.full_every_key is not None:
        every = fields.optional_size(rule.full_every_key) or every
    layers = {layer for layer in range(num_layers) if every is None or (layer + 1) % every}
    if rule.bound == "none":
        return layers
    bound = int(fields.number("max_window_layers"))
    return {layer for layer in layers if (layer >= bound) == (rule.bound == "from")}


def _sparse(fields: Fields, rule: MixtureRule | None, *, num_layers: int) -> set[int]:
    if rule is None or fields.get(_count_key(fields, rule)) == 0:
        return set()
    if not rule.stepped:
        return set(range(num_layers))
    step, dense = fields.size("decoder_sparse_step"), fields.get("mlp_only_layers") or ()
    if not isinstance(dense, list | tuple) or not all(isinstance(one, int) for one in dense):
        raise fields.error("mlp_only_layers", f"must be a list of layers, is {dense!r}")
    return {layer for layer in range(num_layers) if (layer + 1) % step == 0} - set(dense)
