"""Chooses a token from one row of logits.

Called by `engine.torch_runner`. A pure function of (row, sampling, prompt, outputs, position):
the same token whatever the batch, the worker or a restart in between.

Order, as vLLM: repetition, frequency and presence penalties; logit_bias; min_tokens bans the
tokens that would end the text; temperature; min_p; top_k; top_p on what is left. Logprobs are of
the model's own distribution, before all of it. NaN is never chosen and counts as -inf; when the
bans leave nothing they are lifted; a row with no finite logit at all raises `NoFiniteLogits`.
"""

# Shapes: R rows, V vocabulary, C candidates left by the filters.

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.batch import Chunk, SampledToken
from engine.philox import uniform
from protocol.errors import BatonError
from protocol.messages import Sampling

GREEDY_BELOW = 1e-5
"""A temperature this low is 0: dividing by it would overflow."""
_MOST_LIKELY = 256
"""Candidates top_p looks at before it sorts the whole vocabulary."""


class NoFiniteLogits(BatonError):
    """The model answered NaN or -inf for every token: damaged weights or KV."""


def sample(
    logits_RV: Tensor, chunks: Sequence[Chunk], *, eos_token_ids: Sequence[int]
) -> list[SampledToken]:
    """One token for each row; row r belongs to chunk r, which must have `sampling`."""
    plain = [_is_plain_greedy(chunk) for chunk in chunks]
    best: list[int] = logits_RV.argmax(dim=1).tolist() if any(plain) else []
    tokens = []
    for r, chunk in enumerate(chunks):
        if plain[r] and bool(torch.isfinite(logits_RV[r, best[r]])):
            tokens.append(SampledToken(token_id=best[r]))
        else:
            tokens.append(sample_one(logits_RV[r], chunk, eos_token_ids=eos_token_ids))
    return tokens


def sample_one(logits_V: Tensor, chunk: Chunk, *, eos_token_ids: Sequence[int]) -> SampledToken:
    """The token after `chunk`, with the logprobs its sampling asks for."""
    sampling = chunk.sampling
    assert sampling is not None, "the chunk asks for no token"
    raw_V = torch.nan_to_num(logits_V.float(), nan=-torch.inf, posinf=None, neginf=-torch.inf)
    if not bool(torch.isfinite(raw_V).any()):
        raise NoFiniteLogits(f"{chunk.sequence}: no token has a finite logit")
    scores_V = _shaped(raw_V, chunk, sampling, eos_token_ids)
    if not bool((scores_V > -torch.inf).any()):
        scores_V = raw_V
    if sampling.temperature < GREEDY_BELOW:
        token_id = int(scores_V.argmax())
    else:
        number = uniform(seed=sampling.seed, position=chunk.position)
        token_id = _draw(scores_V, sampling, number)
    if sampling.num_logprobs is None:
        return SampledToken(token_id=token_id)
    return _with_logprobs(token_id, raw_V, sampling.num_logprobs)


def _is_plain_greedy(chunk: Chunk) -> bool:
    """Whether the answer is the row's argmax and nothing else."""
    s = chunk.sampling
    assert s is not None, "the chunk asks for no token"
    penalised = s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0
    banned = s.min_tokens > len(chunk.outputs)
    return not (
        s.temperature >= GREEDY_BELOW
        or penalised
        or banned
        or s.logit_bias
        or s.num_logprobs is not None
    )


def _shaped(
    raw_V: Tensor, chunk: Chunk, sampling: Sampling, eos_token_ids: Sequence[int]
) -> Tensor:
    """Penalties, bias and bans."""
    scores_V = raw_V
    if sampling.repetition_penalty != 1:
        scores_V = _repetition(scores_V, chunk, sampling.repetition_penalty)
    if chunk.outputs and (sampling.frequency_penalty != 0 or sampling.presence_penalty != 0):
        ids, counts = np.unique(np.asarray(chunk.outputs, dtype=np.int64), return_counts=True)
        malus = sampling.frequency_penalty * counts + sampling.presence_penalty
        at = torch.from_numpy(ids)
        scores_V = scores_V.index_add(0, at, -torch.from_numpy(malus).to(scores_V.dtype))
    if sampling.logit_bias:
        at = torch.tensor([token_id for token_id, _ in sampling.logit_bias])
        bias = torch.tensor([bias for _, bias in sampling.logit_bias], dtype=scores_V.dtype)
        scores_V = scores_V.index_add(0, at, bias)
    if len(chunk.outputs) < sampling.min_tokens:
        enders = set(sampling.stop_token_ids) | (
            set() if sampling.ignore_eos else set(eos_token_ids)
        )
        banned = [token_id for token_id in enders if token_id < len(scores_V)]
        scores_V = scores_V.index_fill(0, torch.tensor(banned, dtype=torch.int64), -torch.inf)
    return scores_V


def _repetition(scores_V: Tensor, chunk: Chunk, penalty: float) -> Tensor:
    seen = torch.from_numpy(np.unique(np.asarray([*chunk.prompt, *chunk.outputs], dtype=np.int64)))
    mine = scores_V[seen]
    return scores_V.index_copy(0, seen, torch.where(mine > 0, mine / penalty, mine * penalty))


def _draw(scores_V: Tensor, sampling: Sampling, number: float) -> int:
    """Inverse transform over the candidates in order of token id, in float64."""
    scores_V = scores_V / sampling.temperature
    if sampling.min_p > 0:
        floor = scores_V.max() + float(np.log(sampling.min_p))
        scores_V = scores_V.masked_fill(scores_V < floor, -torch.inf)
    ids_C = _candidates(scores_V, sampling)
    chosen_C = scores_V if ids_C is None else scores_V[ids_C]
    weights_C = (chosen_C.double() - chosen_C.max().double()).exp_()
    cumulative_C = weights_C.cumsum(0)
    goal = number * float(cumulative_C[-1])
    index = int(torch.searchsorted(cumulative_C, goal, right=True))
    index = min(index, int(weights_C.nonzero()[-1]))  # never a token of weight 0
    return index if ids_C is None else int(ids_C[index])


def _candidates(scores_V: Tensor, sampling: Sampling) -> Tensor | None:
    """Ids that top_k and top_p keep, ascending; None: all. Ties at the edge go to lower ids."""
    size = len(scores_V)
    top_k = sampling.top_k if 0 < sampling.top_k < size else size
    if sampling.top_p >= 1:
        return None if top_k == size else _best(scores_V, top_k).sort().values
    log_total = scores_V.double().logsumexp(0)
    for width in (min(_MOST_LIKELY, top_k), top_k):
        ids_C = _best(scores_V, width)
        mass_C = (scores_V[ids_C].double() - log_total).exp().cumsum(0)
        whole = float(mass_C[-1]) if width == top_k else 1.0
        kept = int((mass_C < sampling.top_p * whole).sum()) + 1
        if width == top_k or (top_k == size and kept < width):
            return ids_C[: min(kept, width)].sort().values
    raise AssertionError("unreachable: the second width is top_k")


def _best(scores_V: Tensor, count: int) -> Tensor:
    """The ids of the `count` best scores, best first, equals by id."""
    if count < len(scores_V):
        edge = scores_V.topk(count).values[-1]
        ids = (scores_V >= edge).nonzero()[:, 0]
    else:
        ids = torch.arange(len(scores_V))
    order = scores_V[ids].sort(descending=True, stable=True).indices
    return ids[order[:count]]


def _with_logprobs(token_id: int, raw_V: Tensor, num_logprobs: int) -> SampledToken:
    log_total = raw_V.double().logsumexp(0)
    top: tuple[tuple[int, float], ...] = ()
    if num_logprobs:
        ids = _best(raw_V, min(num_logprobs, len(raw_V)))
        top = tuple(zip(ids.tolist(), (raw_V[ids].double() - log_total).tolist(), strict=True))
    return SampledToken(
        token_id=token_id, logprob=float(raw_V[token_id].double() - log_total), top=top
    )
