"""`python -m tools.predict`: the tables of docs/gpu-step.md; `--write` puts them there.

The last column is of bench/results/gpu.jsonl, or of the file that `--measured` names, as
`tools/first_gpu.sh profile OUT` writes it (OUT/results/gpu.jsonl).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.predict import limits
from tools.predict.measured import Measured, committed, read_measured
from tools.predict.model import Kernel, Line, own_linears_ms, predicted
from tools.predict.shape import LLAMA_8B, STEPS, Step

KERNELS = Path(__file__).parent / "kernels.json"
PAGE = Path(__file__).parents[2] / "docs" / "gpu-step.md"
START, END = "<!-- python -m tools.predict --write -->", "<!-- end -->"
NOT_MEASURED = "not measured: no GPU yet"


def read_kernels(file: Path = KERNELS) -> dict[str, Kernel]:
    facts = json.loads(file.read_text(encoding="utf-8"))
    return {name: Kernel(**fact) for name, fact in facts.items()}


def table(step: Step, lines: Sequence[Line], measured: Mapping[str, float]) -> str:
    rows = [
        f"### {title(step)}",
        "| part | launches | MB | GFLOP | limit ms | predicted ms | measured ms |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for line in lines:
        seen = f"{measured[line.part]:.3f}" if line.part in measured else NOT_MEASURED
        rows.append(
            f"| {line.part} | {line.launches} | {line.mbytes:,.1f} | {line.gflops:,.1f} "
            f"| {line.limit_ms:.3f} | {line.predicted_ms:.3f} | {seen} |"
        )
    return "\n".join([*rows, "", summary(step, lines), ""])


def title(step: Step) -> str:
    if step.is_decode:
        return f"Decode, batch {step.sequences}, context {step.context:,}"
    return f"Prefill of {step.tokens:,} tokens"


def summary(step: Step, lines: Sequence[Line]) -> str:
    total = lines[-1]
    matrix_ms = 1e3 * total.gflops * 1e9 / limits.MATRIX_FLOPS_PER_S
    of, least_ms, aim = "the limits of its parts", total.limit_ms, 0.85
    if not step.is_decode:
        of, least_ms, aim = "the matrix rate", matrix_ms, 0.80
    elif step.sequences < 256:
        of, aim = "the bandwidth limit", 0.80
    share = least_ms / total.predicted_ms
    said = f"{share:.0%} of {of} ({least_ms:.2f} ms); the aim is {aim:.0%}."
    if step.is_decode and step.sequences <= 32:
        own_ms = own_linears_ms(lines)
        said += f" With our own linears, which wait for a measurement: {own_ms:.2f} ms, "
        said += f"{least_ms / own_ms:.0%}."
    hidden_ms = total.predicted_ms - 1e3 * limits.GAP_S * total.launches
    said += f" Were every gap hidden (programmatic dependent launch at its best): {hidden_ms:.2f} "
    return said + f"ms, {least_ms / hidden_ms:.0%}."


def tables(measured: Measured) -> str:
    kernels = read_kernels()
    return "\n".join(
        table(step, predicted(kernels, LLAMA_8B, step), measured.get(str(step.tokens), {}))
        for step in STEPS
    )


def written(text: str, made: str) -> str:
    """The page with these tables. Raises ValueError for a page without the place."""
    head, found, rest = text.partition(START)
    _, ended, tail = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"docs/gpu-step.md: no {START} before {END}, between which tables go")
    return f"{head}{START}\n{made}{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/gpu-step.md")
    parser.add_argument("--measured", type=Path, help="a gpu.jsonl")
    asked = parser.parse_args(arguments)
    measured = read_measured(asked.measured, LLAMA_8B) if asked.measured else committed(LLAMA_8B)
    made = tables(measured)
    if asked.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    else:
        print(made, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
