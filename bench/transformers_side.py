"""transformers' continuous batching (`paged|sdpa`) as a side of the benchmark.

Its cache is sized by hand: left to itself it takes all free memory, and minutes to do so.
"""

import importlib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.workload import (
    BLOCK_TOKENS,
    MAX_RUNNING,
    NUM_BLOCKS,
    RUN_LIMIT_S,
    TOKEN_BUDGET,
    Job,
    Times,
    TooSlow,
)
from engine.models.model import DTYPES, Dtype

PAGE_TOKENS = 256
"""transformers' own default, and its best here."""


class TransformersSide:
    name = "transformers"

    def __init__(self, path: Path, *, dtype: Dtype) -> None:
        transformers: Any = importlib.import_module("transformers")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        warnings.simplefilter("ignore")
        self.version = f"{transformers.__version__} paged|sdpa {dtype}"
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], attn_implementation="paged|sdpa"
        ).eval()
        generation = transformers.GenerationConfig(do_sample=False, eos_token_id=-1)
        config = transformers.generation.ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=NUM_BLOCKS * BLOCK_TOKENS // PAGE_TOKENS,
            max_batch_tokens=TOKEN_BUDGET,
            max_requests_per_batch=MAX_RUNNING,
            allow_block_sharing=False,
        )
        self._manager = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=config
        )
        self._manager.start()

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> list[Times]:
        started = time.perf_counter()
        names = [
            self._manager.add_request(
                job.prompt,
                max_new_tokens=job.num_tokens,
                record_timestamps=True,
                eos_token_id=-1,
            )
            for job in jobs
        ]
        times: dict[str, Times] = {}
        while len(times) < len(jobs):
            if time.perf_counter() - started > RUN_LIMIT_S:
                raise TooSlow(f"transformers: {len(times)} of {len(jobs)} in {RUN_LIMIT_S:.0f} s")
            result = self._manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise RuntimeError(f"transformers: {result.error}")
                times[result.request_id] = [at - started for at in result.timestamps]
            elif result is None and not self._manager.is_running():
                raise RuntimeError("transformers: its generation thread has ended")
        return [times[name] for name in names]

    def close(self) -> None:
        self._manager.stop(block=True, timeout=30)
