"""The steps of a model in torch: the oracle of the kernels, and their stand-in where none compile.

Results depend a little on the batch, as those of torch's own kernels do.
"""

# Shapes: T tokens, K features, N features out, H query heads, G KV heads, D head dim, E experts,
# J experts of a token.

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.contract import (
    SWIGLU_ALPHA,
    SWIGLU_LIMIT,
    Activation,
    ExpertWeights,
    HeadShape,
    Linear,
    Norm,
)
from engine.ops.inputs import ForwardInputs

L = TypeVar("L", bound=Linear)


@dataclass(frozen=True, slots=True)
class TorchLinear:
    weight_NK: Tensor
    bias_N: Tensor | None

    @classmethod
    def of_dtype(cls, weight_NK: Tensor, bias_N: Tensor | None, dtype: torch.dtype) -> Self:
        return cls(weight_NK.to(dtype), None if bias_N is None else bias_N.to(dtype))

    def __call__(self, x_TK: Tensor) -> Tensor:
        return F.linear(x_TK, self.weight_NK, self.bias_N)


@dataclass(frozen=True, slots=True)
class WidenedHead:
    """See `engine.ops.contract.LogitsHead`."""

    linear: Linear

    def __call__(self, x_RK: Tensor, out: Tensor | None = None) -> Tensor:
        logits_RN = self.linear(x_RK)
        return logits_RN.float() if out is None else out.copy_(logits_RN)


@dataclass(frozen=True, slots=True)
class LoopedExperts:
    """Experts one after the other, each over the tokens that chose it."""

    linears_E: tuple[tuple[Linear, Linear], ...]
    gated: Callable[[Tensor], Tensor]

    def __call__(self, x_TK: Tensor, ids_TJ: Tensor, weights_TJ: Tensor) -> Tensor:
        y_TK = torch.zeros(x_TK.shape, dtype=torch.float32, device=x_TK.device)
        for expert in sorted(set(ids_TJ.flatten().tolist())):
            tokens, places = torch.where(ids_TJ == expert)
            gate_up, down = self.linears_E[expert]
            out_TK = down(self.gated(gate_up(x_TK[tokens]))).float()
            y_TK.index_add_(0, tokens, out_TK * weights_TJ[tokens, places, None])
        return y_TK.to(x_TK.dtype)


def expert_pairs(
    weights: Iterable[ExpertWeights], linear: Callable[[Tensor, Tensor | None], L]
) -> tuple[tuple[L, L], ...]:
    """Each expert's linears: gate with up, and down."""

    def pair(one: ExpertWeights) -> tuple[L, L]:
        gate_up = linear(one.gate_up_NK, one.gate_up_bias_N)
        return gate_up, linear(one.down_KF, one.down_bias_K)

    return tuple(map(pair, weights))  # a loop would hold one while the next is read


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOps:
    """See `engine.ops.contract.Ops`."""

    io_dtype: torch.dtype
    name: str = "torch"

    def linear(
        self, weight_NK: Tensor, bias_N: Tensor | None, *, added: bool = False, gated: bool = False
    ) -> TorchLinear:
        return TorchLinear.of_dtype(weight_NK, bias_N, self.io_dtype)

    def float32_linear(self, weight_NK: Tensor, bias_N: Tensor | None) -> TorchLinear:
        return TorchLinear.of_dtype(weight_NK, bias_N, torch.float32)

    def head(self, weight_NK: Tensor, bias_N: Tensor | None) -> WidenedHead:
        return WidenedHead(self.linear(weight_NK, bias_N))

    def experts(
        self, weights: Iterable[ExpertWeights], *, num_experts: int, activation: Activation
    ) -> LoopedExperts:
        pairs = expert_pairs(weights, self.linear)
        return LoopedExperts(pairs, partial(self.gated, activation=activation))

    def norm(
        self, x_TK: Tensor, delta: Tensor | None, norm: Norm | None, *, delta_scale: float = 1.0
    ) -> Tensor:
        if delta is not None:
            x_TK.add_(delta, alpha=delta_scale)
        return x_TK.to(self.io_dtype, copy=True) if norm is None else self.post_norm(x_TK, norm)

    def post_norm(self, y_TK: Tensor, norm: Norm) -> Tensor:
        normed_TK = _normed(y_TK.float(), norm.weight_K, norm.eps, centred=norm.centred)
        return (normed_TK if norm.bias_K is None else normed_TK + norm.bias_K).to(self.io_dtype)

    def rotate_and_store(
        self, qkv: Tensor, rotations_T2D: Tensor | None, heads: HeadShape, pool: KvPool,
        inputs: ForwardInputs,
    ) -> None:  # fmt: skip
        sizes = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
        q_THD, k_TGD, v_TGD = torch.split(qkv.view(len(qkv), -1, heads.head_dim), sizes, dim=1)
        q_THD.copy_(_turned(q_THD, heads.q_norm, rotations_T2D, heads))
        k_TGD = _turned(k_TGD, heads.k_norm, rotations_T2D, heads)
        store_kv(pool.tensor[:, heads.layer], k_TGD, v_TGD, inputs.slots_GT[heads.group])

    def attend(self, qkv: Tensor, heads: HeadShape, pool: KvPool, inputs: ForwardInputs) -> Tensor:
        q_THD = qkv.view(len(qkv), -1, heads.head_dim)[:, : heads.num_heads]
        out_THD = paged_attention(q_THD, pool.tensor[:, heads.layer], inputs, heads)
        return out_THD.flatten(1)

    def activated(self, x_TF: Tensor, activation: Activation) -> Tensor:
        assert activation != "swiglu_oai"
        return F.silu(x_TF) if activation == "silu" else F.gelu(x_TF, approximate="tanh")

    def gated_linear(self, gate_up: Linear, x_TK: Tensor, activation: Activation) -> Tensor:
        return self.gated(gate_up(x_TK), activation)

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate, up = gate_up.chunk(2, dim=1)
        match activation:
            case "silu":
                return F.silu(gate) * up
            case "gelu_tanh":
                return F.gelu(gate, approximate="tanh") * up
            case "swiglu_oai":
                gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
                return (up + 1) * gate * torch.sigmoid(SWIGLU_ALPHA * gate)
            case _:
                assert_never(activation)


def _normed(x: Tensor, weight: Tensor, eps: float, *, centred: bool = False) -> Tensor:
    """Over the last dim, in float32."""
    x = x - x.mean(-1, keepdim=True) if centred else x
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _turned(
    x_THD: Tensor, weight: Tensor | None, rotations_T2D: Tensor | None, heads: HeadShape
) -> Tensor:
    """The heads normed, each alone or all as one row, and rotated: of the first R dims, dim r
    turns with dim r + R / 2."""
    x_THD = x_THD.float()
    if weight is not None and heads.centred_norms:
        weight_HD = weight.view(-1, heads.head_dim)
        x_THD = _normed(x_THD, weight_HD, heads.norm_eps, centred=True)
    elif weight is not None and len(weight) == heads.head_dim:
        x_THD = _normed(x_THD, weight, heads.norm_eps)
    elif weight is not None:
        x_THD = _normed(x_THD.flatten(1), weight, heads.norm_eps).view(x_THD.shape)
    if rotations_T2D is None:
        return x_THD
    cos, sin = rotations_T2D[:, None, 0], rotations_T2D[:, None, 1]
    num_turned = 2 * cos.shape[-1]
    first, second = x_THD[..., :num_turned].chunk(2, dim=-1)
    parts = (first * cos - second * sin, second * cos + first * sin, x_THD[..., num_turned:])
    return torch.cat(parts, dim=-1)


def store_kv(layer_pool: Tensor, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """Write k and v of every token to its slot of layer_pool [B, 2, G, S, D]; a slot below 0
    belongs to a row that only fills a batch up, and is not written."""
    block_tokens = layer_pool.shape[3]
    if layer_pool.device.type == "cpu" and (slots_T < 0).any():
        kept_T = slots_T >= 0
        k_TGD, v_TGD, slots_T = k_TGD[kept_T], v_TGD[kept_T], slots_T[kept_T]
    blocks_T, places_T = slots_T // block_tokens, slots_T % block_tokens
    layer_pool[blocks_T, 0, :, places_T] = k_TGD.to(layer_pool.dtype)
    layer_pool[blocks_T, 1, :, places_T] = v_TGD.to(layer_pool.dtype)


def paged_attention(
    q_THD: Tensor, layer_pool: Tensor, inputs: ForwardInputs, heads: HeadShape
) -> Tensor:
    """[T, H, D]: every token over its sequence's context up to itself, as `heads` says."""
    out_THD = torch.empty_like(q_THD)
    starts = inputs.starts_S1.tolist()
    for s, end in enumerate(inputs.ends_S.tolist()):
        mine = slice(starts[s], starts[s + 1])
        k_GCD, v_GCD = _context(layer_pool, inputs.tables_GSB[heads.group, s], end)
        seen_TC = visible(starts[s + 1] - starts[s], end, window=heads.window)
        out_THD[mine] = _weighed(
            q_THD[mine].transpose(0, 1).float(), k_GCD.float(), v_GCD.float(), seen_TC, heads
        ).transpose(0, 1)
    return out_THD


def _weighed(
    q_HTD: Tensor, k_GCD: Tensor, v_GCD: Tensor, seen_TC: Tensor, heads: HeadShape
) -> Tensor:
    seen_TC = seen_TC.to(q_HTD.device)
    group = heads.num_heads // heads.num_kv_heads
    # Slots that nobody may see can hold anything, NaN included: 0 * NaN would show.
    v_GCD = torch.where(seen_TC.any(0)[:, None], v_GCD, 0)
    k_HCD, v_HCD = (x.repeat_interleave(group, dim=0) for x in (k_GCD, v_GCD))
    score_HTC = q_HTD @ k_HCD.transpose(1, 2) * heads.scale
    if heads.softcap is not None:
        score_HTC = heads.softcap * torch.tanh(score_HTC / heads.softcap)
    score_HTC = torch.where(seen_TC, score_HTC, -torch.inf)
    if heads.sinks_H is None:
        return score_HTC.softmax(-1) @ v_HCD
    sinks_HT1 = heads.sinks_H[:, None, None].expand(-1, len(seen_TC), 1)
    weight_HTC = torch.cat((score_HTC, sinks_HT1), dim=-1).softmax(-1)[..., :-1]
    return weight_HTC @ v_HCD


def visible(num_queries: int, num_context: int, *, window: int | None) -> Tensor:
    """[T, C] True where query T (the last ones of the context) may look at C."""
    positions_T1 = torch.arange(num_context - num_queries, num_context)[:, None]
    positions_C = torch.arange(num_context)
    seen_TC = positions_C <= positions_T1
    if window is not None:
        seen_TC &= positions_C > positions_T1 - window
    return seen_TC


def _context(layer_pool: Tensor, table_B: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    block_tokens = layer_pool.shape[3]
    table = table_B[: -(-num_tokens // block_tokens)].long()
    both = layer_pool[table].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :num_tokens]
    return both[0], both[1]
