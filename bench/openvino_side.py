"""OpenVINO GenAI as a side of the benchmark, in an interpreter of its own.

`OpenVinoSide` runs in the benchmark and talks JSON lines to this same file, run as a script by
the Python of a virtual environment that has openvino-genai and optimum-intel:

    python -m venv VENV && VENV/bin/pip install -c constraints-cpu.txt torch
    VENV/bin/pip install -c constraints-cpu.txt openvino-genai "optimum-intel[openvino]"
    VENV/bin/pip uninstall -y torchvision  # comes along, and does not fit a CPU torch
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.workload import Job, Times

CACHE_GB = 1


class OpenVinoSide:
    name = "openvino"

    def __init__(self, path: Path, *, python: Path, threads: int) -> None:
        converted = path.with_name(path.name + "-openvino")
        if not (converted / "openvino_model.xml").exists():
            exporter = python.parent / "optimum-cli"
            command = [str(exporter), "export", "openvino", "--model", str(path)]
            command += ["--task", "text-generation-with-past", "--weight-format", "fp16"]
            offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # else it asks the hub for minutes
            subprocess.run([*command, str(converted)], check=True, timeout=900, env=offline)
        self._process = subprocess.Popen(
            [str(python), __file__, str(converted), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # `select` sees no buffer
        )
        self.version = str(self._answer()["version"])

    def run(self, jobs: "Sequence[Job]") -> "list[Times]":
        assert self._process.stdin is not None
        asked = [[job.prompt, job.num_tokens] for job in jobs]
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        times: list[Times] = self._answer()["times"]
        return times

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:  # it was too slow
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        """The next line that is ours; the library prints its own."""
        from bench.workload import RUN_LIMIT_S, TooSlow

        assert self._process.stdout is not None
        deadline = time.monotonic() + RUN_LIMIT_S
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                raise TooSlow(f"openvino: no answer within {RUN_LIMIT_S:.0f} s")
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(f"openvino: its process has ended ({self._process.poll()})")
            if line.startswith(b"{"):
                answer: dict[str, Any] = json.loads(line)
                return answer


def _serve(path: str, threads: int) -> None:
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.max_num_batched_tokens = 1024
    scheduler.max_num_seqs = 32
    pipe = genai.ContinuousBatchingPipeline(
        path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
    )
    print(json.dumps({"version": f"{genai.__version__}, fp16 weights, defaults"}), flush=True)
    number = 0
    for line in sys.stdin:
        handles: list[Any] = []
        times: list[list[float]] = []
        started = time.perf_counter()
        for prompt, num_tokens in json.loads(line):
            config = genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = num_tokens, True, False
            tokens = openvino.Tensor(_row(prompt))
            handles.append(pipe.add_request(number, tokens, config))
            times.append([])
            number += 1
        while pipe.has_non_finished_requests():
            pipe.step()
            now = time.perf_counter() - started
            for handle, mine in zip(handles, times):  # noqa: B905
                while handle.can_read():
                    for output in handle.read().values():
                        mine += [now] * len(output.generated_ids)
        print(json.dumps({"times": times}), flush=True)


def _row(prompt: list[int]) -> Any:
    import numpy

    return numpy.array([prompt], dtype=numpy.int64)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
