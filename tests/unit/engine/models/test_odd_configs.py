"""Whatever JSON a key of `config.json` has, reading it works or is refused with the file's name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.configs import config

from engine.models.config import read_config
from engine.models.config_keys import COMMON
from engine.models.families import FAMILIES
from protocol.errors import CheckpointError
from protocol.text.text_config import JsonFile

ODD: tuple[Any, ...] = (
    None, True, "x", 1.5, -1, 0, 1, [1], {"a": 1}, [[1]], 10**30, float("nan"),
)  # fmt: skip
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
)  # fmt: skip
ROPE_KEYS = """
    type rope_theta attention_factor attn_factor beta_fast mscale mscale_all_dim truncate
    short_mscale extrapolation_factor apply_yarn_scaling partial_rotary_factor full_attention
"""


def odd_configs(family: str) -> Iterator[dict[str, Any]]:
    base = config(family, head_dim=16)
    keys = set(base) | COMMON | FAMILIES[family].keys | {"layer_types", "is_causal", "clip_qkv"}
    for key in sorted(keys):
        yield from (base | {key: value} for value in ODD)
    for rope in ROPES:
        for key in {*rope, *ROPE_KEYS.split()}:
            for value in ODD:
                one = rope | {key: value}
                nested = {"full_attention": one} if FAMILIES[family].local_rope else one
                yield base | {"rope_parameters": nested}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_odd_value_is_read_or_refused(family: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")  # what is ignored is told elsewhere
    file = Path("config.json")
    outcomes = set()
    for raw in odd_configs(family):
        try:
            found = read_config(Path(), JsonFile(file, b"", raw))
            outcomes.add(found.family.model_type)
        except CheckpointError as error:
            assert str(error).startswith(f"{file}: "), raw
            outcomes.add("refused")
    assert outcomes == {family, "refused"}
