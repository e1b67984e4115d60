"""Each key of the configuration classes of transformers, set: read as there, or refused by name."""

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import read
from support.forwards import pool_for, split_logits
from support.reference import reference

from engine.checkpoint.load import load_model
from engine.models.config_keys import COMMON, IGNORED, REFUSED
from engine.models.families.table import FAMILIES
from protocol.errors import CheckpointError
from tools.make_checkpoint import Shape, make_checkpoint

TOKENS, WINDOW = 24, 7
SIZES = frozenset(
    """
    architectures dtype head_dim hidden_size id2label intermediate_size label2id
    max_position_embeddings model_type moe_intermediate_size num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts rope_parameters
    return_dict transformers_version vocab_size
    """.split()  # noqa: SIM905 - words read better so
)
"""What the shapes of `support.family_shapes` set, and what is none of a checkpoint's."""
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu", "relu")


def fields(family: str) -> Iterator[tuple[str, Any]]:
    """Names and defaults of the keys of its class."""
    transformers: Any = importlib.import_module("transformers")
    for field in dataclasses.fields(transformers.CONFIG_MAPPING[family]):
        if field.name not in SIZES and not field.name.startswith("_"):
            yield field.name, field.default


def other_values(key: str, default: Any) -> list[Any]:
    """What the key may be set to instead."""
    if key == "layer_types":
        return [["sliding_attention"] * 2, ["full_attention"] * 2]
    if key in ("hidden_act", "hidden_activation"):
        return list(ACTIVATIONS)
    if key == "mlp_only_layers":
        return [[0]]
    if key.endswith("_token_id"):
        return [3]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [3]
    if isinstance(default, float):
        return [0.37]
    return [3, True] if default is None else []


OTHERS = (True, 3, 0.37, "other", [3, 3])
"""What a key of another architecture may be."""


def keys_of_others(family: str) -> list[str]:
    """All that any class of transformers declares, but those that this family's or the base of all
    has or names, and formats of weights."""
    transformers: Any = importlib.import_module("transformers")
    own = transformers.CONFIG_MAPPING[family]
    declared = {field.name for field in dataclasses.fields(own)} | set(own.attribute_map)
    base = {name for one in own.__mro__ for name in vars(one)}
    read = set(re.findall(r'"(\w+)"', Path(inspect.getfile(own)).read_text("utf-8")))
    sources = (Path(transformers.__file__).parent / "models").glob("*/configuration_*.py")
    lines = [line for file in sources for line in file.read_text("utf-8").splitlines()]
    found = {match[1] for line in lines if (match := re.match(r"    ([a-z]\w+): [^=]+=", line))}
    ours = COMMON | {"rope_local_base_freq", "partial_rotary_factor", "quantization_config"}
    return sorted(found - declared - read - base - ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_of_another_architecture_changes_nothing_or_is_one_of_a_short_list(
    family: str, tmp_path: Path
) -> None:
    keys = keys_of_others(family)
    assert len(keys) > 700
    assert len(REFUSED) <= 25
    plain = shape(family).config()
    expected = read(tmp_path, plain)
    for value in OTHERS:
        assert read(tmp_path, plain | dict.fromkeys(set(keys) - set(REFUSED), value)) == expected
        for key in set(keys) & set(REFUSED):
            try:
                assert read(tmp_path, plain | {key: value}) == expected
            except CheckpointError as error:
                assert f" {key} " in str(error)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_its_own_class_has_is_refused_only_where_it_changes_logits(
    family: str, tmp_path: Path
) -> None:
    if not causal(family):
        pytest.skip("transformers has no causal model of this text alone")
    make_checkpoint(tmp_path, shape(family))
    plain = json.loads((tmp_path / "config.json").read_text())
    token_ids = torch.arange(TOKENS)[None] * 7 % plain["vocab_size"]
    expected_TV = reference(tmp_path)(token_ids).logits[0]
    for key, default in fields(family):
        for value in other_values(key, default) if key not in REFUSED else []:
            try:
                read(tmp_path, plain | {key: value})
            except CheckpointError:
                if key == "layer_types" and FAMILIES[family].stateless:
                    continue  # its class fails there
                hf = accepted_reference(tmp_path)
                if hf is not None:
                    got = hf(token_ids).logits[0]
                    assert got.shape != expected_TV.shape or not torch.equal(got, expected_TV), key


def shape(family: str, **extra: Any) -> Shape:
    window = WINDOW if FAMILIES[family].window else None
    rope: Any = FAMILIES[family].defaults.get("rope_parameters", {})  # some take no other
    return Shape(family=family, head_dim=16, window=window, rope=rope, extra=extra)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_transformers_knows_is_read_or_refused_by_name(
    family: str, tmp_path: Path
) -> None:
    for key, default in fields(family):
        for value in other_values(key, default):
            try:
                read(tmp_path, shape(family, **{key: value}).config())
            except CheckpointError as error:
                assert f" {key} " in str(error), (key, value)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_with_a_key_set_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Where we take the value and transformers does. Keys that no family reads are left out."""
    if not causal(family):
        pytest.skip("transformers has no causal model of this text alone")
    compared = 0
    for key, default in fields(family):
        for value in [] if key in IGNORED else other_values(key, default):
            path = tmp_path / f"{key}-{compared}"
            try:
                make_checkpoint(path, shape(family, **{key: value}))
            except CheckpointError:
                continue  # see above
            hf = accepted_reference(path)
            if hf is not None:
                assert error(path, hf) < 1e-4, (key, value)
                compared += 1
    assert compared > 2


def causal(family: str) -> bool:
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    return family in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def accepted_reference(path: Path) -> Any:
    """None where its configuration is too strict for the value."""
    try:
        return reference(path)
    except Exception as error:  # promises no narrower kind
        if "Validation" not in type(error).__name__:
            raise
        return None


def error(path: Path, hf: Any) -> float:
    model = load_model(path, dtype="float32", native=False)
    token_ids = torch.arange(TOKENS) * 7 % model.config.vocab_size
    with torch.inference_mode():
        expected_TV = hf(token_ids[None]).logits[0]
    pool = pool_for(model, num_blocks=16)
    got_TV = split_logits(model, pool, token_ids.tolist(), sizes=[TOKENS], first_block=15)
    return float((got_TV - expected_TV).abs().max() / expected_TV.abs().max())
