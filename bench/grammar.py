"""What a grammar costs: decoding held to a schema of 50 nested fields, beside the same without.

    python -m bench.grammar [--repeats 5] [--batch 32]

On the model of `bench.engine`. Both take turns within every repeat, so that a busy machine slows
them alike; the ratio is the median of the repeats' ratios. What is measured is the median step of
a full batch, so neither prefill nor compiling is part of it; compiling is told beside it. Of a
machine that others use too, trust the ratio of the work: processor seconds of whole runs, with one
thread (several wait by spinning).
"""

import argparse
import json
import sys
import time
from statistics import median
from typing import Any

import msgspec
import torch

from bench.baton_side import BatonSide
from bench.checkpoint import bench_checkpoint
from bench.record import percentiles, record
from bench.workload import DECODE_STEPS, Prompts, decode_tokens_per_s
from protocol.messages import Grammar, Sampling
from protocol.text.grammar import GrammarTokenizer, Matcher
from protocol.text.tokenizer import Tokenizer

BAR = 0.9
"""Of the tokens per second without a grammar, at least."""
PROMPT_TOKENS = 32
"""Short, so that a run is decoding: what a grammar costs does not depend on it."""
NUM_FIELDS = 50
GROUP = 5
"""Fields of a nested object."""
KINDS: tuple[dict[str, Any], ...] = (
    {"type": "string", "maxLength": 12},
    {"type": "integer", "minimum": 0, "maximum": 100_000},
    {"type": "array", "items": {"type": "number"}, "maxItems": 3},
    {"enum": ["low", "middle", "high"]},
    {"type": ["boolean", "null"]},
)


def schema() -> dict[str, Any]:
    """Objects without an end: no text is over within a run."""
    groups = {
        f"group_{first // GROUP}": _object(
            {f"field_{first + index}": KINDS[index % len(KINDS)] for index in range(GROUP)}
        )
        for first in range(0, NUM_FIELDS, GROUP)
    }
    return {"type": "array", "items": _object(groups), "minItems": 1000}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def grammar() -> Grammar:
    return Grammar(text=f"start: %json {json.dumps(schema())}")


RULES = {
    "greedy": Sampling(seed=1, max_tokens=1, temperature=0.0, ignore_eos=True),
    "sampled": Sampling(seed=1, max_tokens=1, temperature=1.0, ignore_eos=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    path = bench_checkpoint()
    side = BatonSide(path, dtype=chosen.dtype)
    try:
        results = {name: _compared(side, name, chosen) for name in RULES}
    finally:
        side.close()
    tokenizer = Tokenizer.load(path)
    conditions = {
        "model": "llama shape, 155.7 M parameters, random", "dtype": chosen.dtype,
        "vocabulary": tokenizer.vocab_size, "fields": NUM_FIELDS, "batch": chosen.batch,
        "threads": chosen.threads, "repeats": chosen.repeats, "prompt": PROMPT_TOKENS,
        "decode_steps": DECODE_STEPS, "unit": "tokens per second",
    }  # fmt: skip
    record("grammar", conditions=conditions, results={**results, **_alone(tokenizer)})


def _compared(side: BatonSide, name: str, chosen: argparse.Namespace) -> dict[str, float]:
    rates: dict[bool, list[float]] = {False: [], True: []}
    work: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(-1, chosen.repeats):  # the first warms up
        for held in rates:
            rule = msgspec.structs.replace(RULES[name], grammar=grammar() if held else None)
            side.rule = rule
            prompts, worked_s = Prompts(f"{name} {repeat} {held}"), time.process_time()
            rate = decode_tokens_per_s(side, prompts, batch=chosen.batch, context=PROMPT_TOKENS)
            print(f"{repeat} {name} {'held' if held else 'free'} {rate:.1f}", file=sys.stderr)
            if repeat >= 0:
                rates[held].append(rate)
                work[held].append(time.process_time() - worked_s)
    return {
        "free": round(median(rates[False]), 1),
        "held": round(median(rates[True]), 1),
        "ratio": _ratio(rates[True], rates[False]),
        "bar": BAR,
        "work_ratio": _ratio(work[False], work[True]),
    }


def _ratio(ones: list[float], others: list[float]) -> float:
    return round(median(one / other for one, other in zip(ones, others, strict=True)), 3)


def _alone(tokenizer: Tokenizer) -> dict[str, object]:
    """Milliseconds of making the vocabulary ready and of compiling, microseconds of a mask."""
    before = time.perf_counter()
    vocabulary = GrammarTokenizer(tokenizer)
    ready = time.perf_counter()
    matcher = Matcher.compile(grammar().text, vocabulary)
    compiled = time.perf_counter()
    words = vocabulary.new_words(1)[0]
    taken_us = []
    for token_id in _document(tokenizer):
        started = time.perf_counter()
        matcher.fill(words)
        taken_us.append(1e6 * (time.perf_counter() - started))
        assert matcher.accept(token_id), matcher.error
    return {
        "vocabulary_ms": round(1e3 * (ready - before), 1),
        "compile_ms": round(1e3 * (compiled - ready), 1),
        "mask_us": percentiles(taken_us, digits=1),
    }


def _document(tokenizer: Tokenizer) -> list[int]:
    values = ["a name", 12345, [1.5, 2, 3], "middle", None]
    one = {
        f"group_{first // GROUP}": {
            f"field_{first + index}": values[index % len(values)] for index in range(GROUP)
        }
        for first in range(0, NUM_FIELDS, GROUP)
    }
    return tokenizer.encode(json.dumps([one, one]), add_special_tokens=False)[:-1]


if __name__ == "__main__":
    main()
