"""transformers on the same shape, in a process of its own: `bench.gpu.peers` starts it.

    python -m bench.gpu.peer static|paged DIRECTORY --batch B --context C --steps N --device cuda

DIRECTORY has the shape's `config.json`; the weights are random, made on the device. `static` is
`generate` with a static cache, which transformers compiles on a GPU; `paged` its continuous
batching over `paged|sdpa`. Prints one line of JSON: seconds of a decode step (median) and of the
prefill, and the version.
"""

# Shapes: B sequences, C context tokens.

import argparse
import importlib
import json
import time
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

PAGE_TOKENS = 256
WITHIN_S = 300.0


def main() -> None:
    asked = _arguments()
    warnings.simplefilter("ignore")
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    measure = {"static": static, "paged": paged}[asked.kind]
    results = measure(transformers, asked)
    print(json.dumps({**results, "version": f"transformers {transformers.__version__}"}))


def static(transformers: Any, asked: argparse.Namespace) -> dict[str, float]:
    """The second run of two: the first one compiles."""
    model = _model(transformers, asked, "sdpa")
    prompt_BC = torch.randint(3, 500, (asked.batch, asked.context), device=asked.device)
    times: list[float] = []

    class Clock(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, ids: torch.Tensor, scores: object, **more: object) -> torch.Tensor:
            if ids.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    for _ in range(2):
        times.clear()
        started = time.perf_counter()
        model.generate(
            prompt_BC, attention_mask=torch.ones_like(prompt_BC), max_new_tokens=asked.steps + 1,
            do_sample=False, cache_implementation="static", eos_token_id=None, pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([Clock()]),
        )  # fmt: skip
    return {"step_s": _median_step(times), "prefill_s": times[0] - started}


def paged(transformers: Any, asked: argparse.Namespace) -> dict[str, float]:
    """Steps in which all sequences decode: those after the last one's first token."""
    model = _model(transformers, asked, "paged|sdpa")
    generation = transformers.GenerationConfig(do_sample=False, eos_token_id=-1)
    pages = asked.batch * -(-(asked.context + asked.steps + 1) // PAGE_TOKENS) + 1
    config = transformers.generation.ContinuousBatchingConfig(
        page_size=PAGE_TOKENS, num_blocks=pages, allow_block_sharing=False,
        max_batch_tokens=max(2048, asked.context), max_requests_per_batch=asked.batch,
    )  # fmt: skip
    manager = model.init_continuous_batching(
        generation_config=generation, continuous_batching_config=config
    )
    manager.start()
    started = time.perf_counter()
    for number in range(asked.batch):
        prompt = [3 + (i * 31 + number) % 490 for i in range(asked.context)]
        manager.add_request(
            prompt, max_new_tokens=asked.steps + 1, record_timestamps=True, eos_token_id=-1
        )
    said: list[list[float]] = []
    while len(said) < asked.batch and time.perf_counter() < started + WITHIN_S:
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            if result.error is not None:
                raise RuntimeError(result.error)
            said.append(list(result.timestamps))
        elif result is None and not manager.is_running():
            raise RuntimeError("its generation thread has ended")
    manager.stop(block=True, timeout=30)
    last_first = max(times[0] for times in said)
    full = [at for at in min(said, key=lambda times: times[0]) if at >= last_first]
    return {"step_s": _median_step(full), "prefill_s": last_first - started}


def _median_step(times: list[float]) -> float:
    steps = [after - before for before, after in pairwise(times)]
    if len(steps) < 3:
        raise RuntimeError(f"only {len(steps)} whole steps: give it more")
    return median(steps)


def _model(transformers: Any, asked: argparse.Namespace, attention: str) -> Any:
    config = transformers.AutoConfig.from_pretrained(asked.directory)
    with torch.device(asked.device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, asked.dtype), attn_implementation=attention
        )
    return model.eval()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["static", "paged"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
