"""Steps of a few sequences driven through a runner: one by one, or launched ahead."""

from collections.abc import Mapping

from support.forwards import chunk, pool_for

from engine.batch import PENDING, Chunk, SampledToken, SequenceId
from engine.limits import EngineLimits
from engine.models.model import Model
from engine.runner.cpu import TorchRunner
from engine.runner.gpu.runner import DeviceRunner
from protocol.messages import Sampling

PROMPTS = {
    SequenceId("a"): [5, 9, 200, 31, 77, 8, 120, 44, 301, 2, 6],
    SequenceId("b"): [7, 7, 90],
    SequenceId("c"): [400, 3, 18, 250, 61],
}
TABLES = {sequence: range(12 * n, 12 * n + 12) for n, sequence in enumerate(PROMPTS)}
"""Of 12 blocks, which up to four KV groups divide."""
LIMITS = EngineLimits(max_running=6, max_waiting=8, token_budget=64, max_context_tokens=64)
EOS = (2,)
GREEDY = Sampling(seed=0, max_tokens=9, temperature=0.0)
SEEDED = Sampling(seed=11, max_tokens=9, temperature=1.3, top_p=0.95)
Tokens = dict[SequenceId, list[SampledToken]]


def torch_runner(model: Model) -> TorchRunner:
    return TorchRunner(model, pool_for(model), eos_token_ids=EOS)


def prefills(rules: Mapping[SequenceId, Sampling]) -> list[Chunk]:
    return [
        chunk(
            PROMPTS[s],
            table=TABLES[s],
            sequence=s,
            sampling=rule,
            prompt_ids=PROMPTS[s],
            num_prompt=len(PROMPTS[s]),
        )
        for s, rule in rules.items()
    ]


def decodes(rules: Mapping[SequenceId, Sampling], outputs: Tokens, *, pending: int) -> list[Chunk]:
    """The next token of each, of which the newest `pending` have not been read."""
    chunks = []
    for s, rule in rules.items():
        known = [token.token_id for token in outputs[s]]
        chunks.append(
            Chunk(
                sequence=s,
                token_ids=[PENDING] if pending else known[-1:],
                start=len(PROMPTS[s]) + len(known) + pending - 1,
                block_table=TABLES[s],
                sampling=rule,
                prompt_ids=PROMPTS[s],
                outputs=known,
                pending=pending,
                num_prompt=len(PROMPTS[s]),
            )
        )
    return chunks


def expected(model: Model, rules: Mapping[SequenceId, Sampling], *, count: int) -> Tokens:
    runner, outputs = torch_runner(model), {s: list[SampledToken]() for s in rules}
    for step in range(count):
        part = decodes(rules, outputs, pending=0) if step else prefills(rules)
        for s, tokens in runner.launch(part).tokens().items():
            outputs[s].extend(tokens)
    return outputs


def ahead(runner: DeviceRunner, rules: Mapping[SequenceId, Sampling], *, count: int) -> Tokens:
    """Each step launched before the last one's tokens are read."""
    outputs = {s: list[SampledToken]() for s in rules}
    unread = [runner.launch(prefills(rules))]
    for step in range(1, count):
        unread.append(runner.launch(decodes(rules, outputs, pending=len(unread))))
        if len(unread) == runner.depth or step == count - 1:
            for s, tokens in unread.pop(0).tokens().items():
                outputs[s].extend(tokens)
    for launched in unread:
        for s, tokens in launched.tokens().items():
            outputs[s].extend(tokens)
    return outputs


def all_with(rule: Sampling) -> dict[SequenceId, Sampling]:
    return dict.fromkeys(PROMPTS, rule)


def stepwise(runner: DeviceRunner, rules: Mapping[SequenceId, Sampling], *, count: int) -> Tokens:
    outputs = {s: list[SampledToken]() for s in rules}
    for step in range(count):
        part = decodes(rules, outputs, pending=0) if step else prefills(rules)
        for s, tokens in runner.launch(part).tokens().items():
            outputs[s].extend(tokens)
    return outputs
