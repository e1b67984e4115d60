"""Why a request goes where it goes, in one line of printable ASCII, fit for a header."""

from router.placement.cost import Breakdown, Demand
from router.placement.fleet import Fleet
from router.placement.option import Option


def explain(
    fleet: Fleet, demand: Demand, option: Option, *, other: Option | None = None, note: str = ""
) -> str:
    parts = [
        _workers(fleet, option),
        f"uncached {option.num_uncached} of {demand.num_tokens} tokens",
        _compared(fleet, option, other, note),
        _terms(option.terms),
    ]
    if option.num_pulled:
        lender = fleet.name_of(option.source)
        parts.insert(2, f"pulls {option.num_pulled} from {lender}")
    return printable("; ".join(parts))


def printable(text: str) -> str:
    """Workers may be called anything; a header has printable ASCII."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if " " <= char <= "~" else "?" for char in text)


def _workers(fleet: Fleet, option: Option) -> str:
    decode = fleet.name_of(option.decode)
    return decode if option.prefill < 0 else f"{fleet.name_of(option.prefill)}>{decode}"


def _compared(fleet: Fleet, option: Option, other: Option | None, note: str) -> str:
    if other is None:
        return note
    where = "local" if other.prefill < 0 else f"by {fleet.name_of(other.prefill)}"
    text = f"{option.terms.cost_s:.3f} s against {other.terms.cost_s:.3f} s {where}"
    return f"{text} {note}" if note else text


def _terms(terms: Breakdown) -> str:
    return (
        f"first token {terms.first_token_s:.3f} s = queue {terms.queue_s:.3f} + pull "
        f"{terms.pull_s:.3f} + prefill {terms.prefill_s:.3f} + transfer {terms.transfer_s:.3f} + "
        f"decode {terms.decode_wait_s:.3f}; stream {terms.stream_s:.3f} s, others "
        f"{terms.others_s:.3f} s at {1000 * terms.inter_token_s:.1f} ms a token"
    )
