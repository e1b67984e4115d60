"""What is tried of experts: few rows of each, and many."""

# Shapes: T tokens, E experts, J experts of a token, K features, F of the MLP.

from collections.abc import Iterator
from itertools import product

import torch

from engine.ops.triton import experts, launch
from engine.ops.triton.launch import Launch
from tools.tune.subject import Subject, noise


def experts_subjects(num_experts: int, choices: int, width: int, hidden: int) -> Iterator[Subject]:
    weights = {
        "gate_up_ENK": noise(num_experts, 2 * hidden, width),
        "down_EKF": noise(num_experts, width, hidden),
    }
    for num_tokens in (32, 2_048):
        x_TK, scores_TE = noise(num_tokens, width), noise(num_tokens, num_experts)
        weights_TJ, ids_TJ = scores_TE.float().softmax(1).topk(choices)
        rows = ids_TJ.numel() / num_experts
        yield Subject(
            kernel="experts",
            shape=launch.experts_class(rows, num_experts, width, hidden, torch.bfloat16),
            default=launch.experts_default(rows, itemsize=2),
            candidates=[
                Launch(block_m=m, block_n=n, block_k=k, num_warps=warps, num_stages=stages)
                for m, n, k, warps, stages in product(
                    (16, 32) if rows <= launch.FEW_ROWS else (64, 128),
                    (64, 128), (64, 128), (4, 8), (2, 3, 4),
                )
            ],
            run=lambda one, x=x_TK, ids=ids_TJ, factors=weights_TJ: experts.GroupedExperts(  # type: ignore[misc]
                gate_up_bias_EN=None, down_bias_EK=None, activation="silu", launch=one, **weights
            )(x, ids, factors),
        )  # fmt: skip
