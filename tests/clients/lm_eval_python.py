"""lm-eval: log-likelihoods, rolling ones and generations, by ids and by text."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

URL, MODEL, FOLDER = sys.argv[1:4]
LM_EVAL = Path(sys.executable).with_name("lm_eval")
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["red", "green"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 20},
        "metric_list": [{"metric": "exact_match"}],
    },
}
with tempfile.TemporaryDirectory() as directory:
    home = Path(directory)
    docs = [{"q": f"The sky was number {number} and", "a": "blue"} for number in range(4)]
    (home / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, task in TASKS.items():
        where = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(home / "docs.jsonl")}},
            "test_split": "test",
        }
        (home / f"{name}.yaml").write_text(json.dumps({**where, **task}))
    for ids in ("True", "False"):
        model = (
            f"model={MODEL},base_url={URL}/v1/completions,tokenizer={FOLDER},"
            f"tokenized_requests={ids},num_concurrent=2,max_retries=1,max_length=512"
        )
        done = subprocess.run(
            [LM_EVAL, "--model", "local-completions", "--model_args", model, "--tasks",
             ",".join(TASKS), "--include_path", str(home), "--output_path", str(home / ids)],
            capture_output=True, text=True, timeout=250, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        (results,) = (home / ids).rglob("results_*.json")
        assert set(json.loads(results.read_text())["results"]) == set(TASKS)
