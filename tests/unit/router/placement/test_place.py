from dataclasses import replace

import pytest

from protocol.ids import WorkerId
from protocol.messages import Role
from router.placement.place import (
    Candidate,
    Placement,
    PlacementRefusal,
    Prefer,
    place,
    place_prompt,
)


def candidate(name: str, **changes: object) -> Candidate:
    """An idle, measured worker: 10,000 tokens/s, 2 ms a step, 1 GB/s, 1 kB a token."""
    role: Role = "prefill" if name.startswith("prefill") else "decode"
    plain = Candidate(
        worker=WorkerId(name),
        role=role,
        compat="same",
        num_cached_tokens=0,
        num_waiting_tokens=0,
        num_running=0,
        num_free_blocks=1_000,
        num_blocks=1_000,
        block_tokens=16,
        token_bytes=1_000,
        max_context_tokens=8_192,
        transports=("shm", "tcp"),
        prefill_tokens_per_s=10_000.0,
        decode_step_s=0.002,
        transfer_bytes_per_s=1e9,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


P0, P1, D0, D1 = map(candidate, ["prefill-0", "prefill-1", "decode-0", "decode-1"])


def chosen(*candidates: Candidate, num_tokens: int = 2_000, prefer: Prefer = "cheapest") -> str:
    """`prefill>decode` or `decode`."""
    placement = place(candidates, num_tokens=num_tokens, max_output_tokens=100, prefer=prefer)
    assert isinstance(placement, Placement)
    return f"{placement.prefill}>{placement.decode}" if placement.prefill else placement.decode


@pytest.mark.parametrize(
    ("why", "candidates", "num_tokens", "way"),
    [
        ("a long prompt goes apart", (P0, D0), 2_000, "prefill-0>decode-0"),
        ("a short one is cheaper alone", (P0, D0), 20, "decode-0"),
        ("ties go by name, whatever the order", (D1, P1, D0, P0), 2_000, "prefill-0>decode-0"),
        (
            "what decode has cached need not travel",
            (P0, D0, replace(D1, num_cached_tokens=1_984)),
            2_000,
            "decode-1",
        ),
        (
            "a prefix on a prefill worker attracts",
            (P0, replace(P1, num_cached_tokens=1_600), D0),
            2_000,
            "prefill-1>decode-0",
        ),
        (
            "but not behind a longer queue than it saves",
            (P0, replace(P1, num_cached_tokens=1_600, num_waiting_tokens=4_000), D0),
            2_000,
            "prefill-0>decode-0",
        ),
        (
            "a full prefill queue sends the prompt to an idle decode worker",
            (replace(P0, num_waiting_tokens=20_000), D0),
            2_000,
            "decode-0",
        ),
        (
            "running streams keep prompts away from decode",
            (replace(P0, num_waiting_tokens=4_000), replace(D0, num_running=8)),
            2_000,
            "prefill-0>decode-0",
        ),
        (
            "the emptier decode worker takes the stream",
            (P0, replace(D0, num_running=4), D1),
            2_000,
            "prefill-0>decode-1",
        ),
        (
            "no free blocks is a wait",
            (P0, replace(D0, num_free_blocks=0, num_running=1), D1),
            2_000,
            "prefill-0>decode-1",
        ),
        (
            "a pool full of this prompt's own prefix has room for it",
            (replace(D0, num_free_blocks=0, num_running=1, num_cached_tokens=1_984), D1),
            2_000,
            "decode-0",
        ),
        (
            "cached blocks that are free are not counted twice",
            (replace(D0, num_blocks=200, num_free_blocks=50, num_running=1), D1),
            2_000,
            "decode-1",
        ),
        (
            "a slow network keeps the prompt where it is decoded",
            (P0, replace(D0, transfer_bytes_per_s=1e6)),
            2_000,
            "decode-0",
        ),
        ("other layouts are never paired", (replace(P0, compat="other"), D0), 2_000, "decode-0"),
        (
            "a pool on a GPU hands nothing to one of a host",
            (replace(P0, transports=("cuda_ipc", "nccl")), D0),
            2_000,
            "decode-0",
        ),
        (
            "one common way is enough",
            (replace(P0, transports=("tcp",)), D0),
            2_000,
            "prefill-0>decode-0",
        ),
        (
            "a prefill pool too small is passed over",
            (replace(P0, num_blocks=100), P1, D0),
            2_000,
            "prefill-1>decode-0",
        ),
        (
            "a prefill pool needs room for the first token and one more",
            (replace(P0, num_blocks=125), replace(P1, num_blocks=126), D0),
            2_000,
            "prefill-1>decode-0",
        ),
        (
            "a prefill pool with room for one token only would finish the text",
            (replace(P0, max_context_tokens=2_001), replace(P1, max_context_tokens=2_002), D0),
            2_000,
            "prefill-1>decode-0",
        ),
        (
            "a decode pool too small is passed over",
            (P0, replace(D0, num_blocks=126), D1),
            2_000,
            "prefill-0>decode-1",
        ),
    ],
)
def test_place(why: str, candidates: tuple[Candidate, ...], num_tokens: int, way: str) -> None:
    assert chosen(*candidates, num_tokens=num_tokens) == way, why


def test_unmeasured_workers_are_taken_for_their_measured_peers() -> None:
    fresh = replace(P1, prefill_tokens_per_s=0.0)
    assert chosen(replace(P0, num_waiting_tokens=100), fresh, D0) == "prefill-1>decode-0"


def test_nobody_measured_is_no_reason_to_refuse() -> None:
    speeds = ("prefill_tokens_per_s", "decode_step_s", "transfer_bytes_per_s")
    workers = [candidate(name, **dict.fromkeys(speeds, 0.0)) for name in ("prefill-0", "decode-0")]
    assert chosen(*workers) == "prefill-0>decode-0"


def test_prefill_can_be_preferred_whatever_the_cost() -> None:
    assert chosen(P0, D0, num_tokens=20, prefer="prefill") == "prefill-0>decode-0"
    assert chosen(D0, num_tokens=20, prefer="prefill") == "decode-0"


def test_the_reason_names_the_way_the_work_and_both_costs() -> None:
    placement = place(
        [replace(P0, num_cached_tokens=128), D0], num_tokens=540, max_output_tokens=10
    )
    assert isinstance(placement, Placement)
    assert placement.reason == (
        "prefill-0>decode-0; uncached 412 of 540 tokens; 0.043 s against 0.081 s local"
    )


def test_the_reason_of_a_lone_decode_worker_says_so() -> None:
    placement = place([D0], num_tokens=40, max_output_tokens=10)
    assert isinstance(placement, Placement)
    assert placement.reason == "decode-0; uncached 40 of 40 tokens; no prefill worker"


def test_the_reason_fits_a_header_whatever_workers_are_called() -> None:
    placement = place([candidate("décode\r\n")], num_tokens=40, max_output_tokens=10)
    assert isinstance(placement, Placement)
    assert placement.reason.startswith("d?code??; ")


def test_no_decode_worker_is_a_refusal() -> None:
    refusal = place([P0], num_tokens=40, max_output_tokens=10)
    assert refusal == PlacementRefusal(why="no_decode_worker", reason="no decode worker")


def test_what_no_pool_can_ever_hold_is_too_long_with_the_numbers() -> None:
    small = replace(D0, num_blocks=10)
    refusal = place([P0, small], num_tokens=100, max_output_tokens=61)
    assert isinstance(refusal, PlacementRefusal)
    assert refusal.why == "too_long"
    assert refusal.reason == "161 tokens with the answer; the largest decode worker holds 160"
    assert isinstance(place([P0, small], num_tokens=100, max_output_tokens=60), Placement)


def test_sixty_four_workers_of_each_role_still_have_one_cheapest_pair() -> None:
    prefills = [candidate(f"prefill-{n:02}", num_waiting_tokens=64 - n) for n in range(64)]
    decodes = [candidate(f"decode-{n:02}", num_running=64 - n) for n in range(64)]
    assert chosen(*prefills, *decodes) == "prefill-63>decode-63"


@pytest.mark.parametrize(
    ("candidates", "worker"),
    [
        ((D0, P1, P0), "prefill-0"),
        ((D0, replace(P0, num_waiting_tokens=9_000), P1), "prefill-1"),
        ((P0, replace(P1, num_cached_tokens=1_984), D0), "prefill-1"),
        ((replace(P0, max_context_tokens=100), D1, D0), "decode-0"),
        ((replace(D0, num_cached_tokens=1_984), P0), "prefill-0"),
    ],
)
def test_a_prompt_alone_is_for_the_prefill_worker_that_is_done_first(
    candidates: tuple[Candidate, ...], worker: str
) -> None:
    placement = place_prompt(candidates, num_tokens=2_000, max_output_tokens=0)
    assert isinstance(placement, Placement)
    assert (placement.prefill, placement.decode) == (None, worker)
    assert placement.reason.startswith(f"{worker}; uncached")


def test_a_prompt_that_fits_nowhere_is_refused() -> None:
    refused = place_prompt((P0, D0), num_tokens=8_192, max_output_tokens=1)
    assert isinstance(refused, PlacementRefusal) and refused.why == "too_long"
    assert isinstance(place_prompt((P0,), num_tokens=8_192, max_output_tokens=0), Placement)
    nobody = place_prompt((), num_tokens=1, max_output_tokens=0)
    assert isinstance(nobody, PlacementRefusal) and nobody.why == "no_decode_worker"
