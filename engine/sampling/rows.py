"""Who chooses the tokens of a step on a device, and what is reported of the choice.

`Chooser` is `engine.sampling.triton_sample.sample` on a GPU; `choose_on_host` stands for it
elsewhere and is the rows' oracle, `engine.sampling.sampler`.
"""

# Shapes: R rows, V vocabulary, N of the most likely, A rows whose logprobs are asked for.

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

NO_TOKEN = -1
"""Of a row without a finite logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """How each row is sampled, on the device. `top_k_R` 0: all; `seed_R` the seed's 64 bits."""

    temperature_R: Tensor  # float32
    top_k_R: Tensor  # int32
    top_p_R: Tensor  # float32
    min_p_R: Tensor  # float32
    seed_R: Tensor  # int64
    position_R: Tensor  # int64


class Chooser(Protocol):
    def __call__(self, logits_RV: Tensor, params: RowRules, /) -> Tensor:
        """int64 [R] on the device of the logits, which are float32; NO_TOKEN where none is
        finite."""
        ...
