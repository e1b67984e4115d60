"""The model families, as tables over shared parts: a new family of known parts is a row here.

Defaults are transformers' meaning of absent keys.
"""

from collections.abc import Mapping

from engine.models.families.family import Family
from engine.models.families.layer_norms import LAYER_NORMED
from engine.models.families.mixtures import MIXTURES
from engine.models.families.plain import PLAIN

FAMILIES: Mapping[str, Family] = {
    family.model_type: family for family in (*PLAIN, *MIXTURES, *LAYER_NORMED)
}
