"""The formulas against figures made by hand. A step takes 2 ms, 0.1 ms a prompt token, 10 ns for
each token that one attends to, and 0.5 ms a sequence; a token's KV has 1,000 bytes."""

import pytest
from support.standing import Standing, demand_of, depths_of, fleet_of

from protocol.messages import StepModel
from router.placement.cost import Breakdown
from router.placement.option import Option, OptionQuery
from router.placement.twin import find_options_twin

STEP = StepModel(fixed_s=0.002, token_s=1e-4, attended_s=1e-8, sequence_s=5e-4)
PREFILL = Standing(name="prefill-0", step=STEP, max_step_tokens=512)
DECODE = Standing(name="decode-0", step=STEP, max_step_tokens=256)


def options_of(*standings: Standing, num_tokens: int) -> tuple[Option, Option]:
    """The pair, and the decode worker alone."""
    question = OptionQuery(
        demand=demand_of(num_tokens, max_output_tokens=10),
        open=fleet_of(*standings).ready,
        depths=depths_of(*standings),
        held=depths_of(*standings),
        now=0.0,
        inter_token_target_s=0.05,
        worker_queue_s=1.0,
    )
    options = find_options_twin(fleet_of(*standings), question)
    assert options.pair is not None and options.alone is not None
    return options.pair, options.alone


def test_the_terms_of_a_pair() -> None:
    """1,040 tokens of which 16 are cached on the prefill worker and 40 on the decode worker."""
    pair, _ = options_of(
        PREFILL.but(cached=16, waiting=400),
        DECODE.but(cached=32, running=4, context=6_000, waiting=600, rate=2e6, latency_s=0.003),
        num_tokens=1_040,
    )
    # 1,024 tokens in two chunks; they attend to (1,040^2 - 16^2) / 2 = 540,672 others.
    prefill_s = 2 * 0.002 + 1_024 * 1e-4 + 540_672 * 1e-8
    # 1,008 tokens travel in 504 ms; the first half of the prefill hides some of them, and the
    # chunk of 512 that is computed last, 256 ms, cannot begin sooner.
    transfer_s = 0.003 + 0.504 - prefill_s / 2
    step_s = 0.002 + 6_000 * 1e-8 + 4 * 5e-4
    longer_s = (1_040 + 5) * 1e-8 + 5e-4
    # The step it waits for has a chunk of the prompts that wait there.
    decode_wait_s = 256 * 1e-4 + step_s + longer_s
    _assert_terms(
        pair.terms,
        queue_s=0.04,
        pull_s=0.0,
        prefill_s=prefill_s,
        transfer_s=transfer_s,
        decode_wait_s=decode_wait_s,
        stream_s=10 * (step_s + longer_s),
        others_s=10 * longer_s * 4,
        inter_token_s=step_s + longer_s,
        longest_step_s=0.0,
    )
    assert pair.terms.first_token_s == pytest.approx(0.04 + prefill_s + transfer_s + decode_wait_s)


def test_of_a_fast_link_the_last_chunk_is_seen() -> None:
    pair, _ = options_of(PREFILL, DECODE.but(rate=1e8, latency_s=0.003), num_tokens=1_024)
    assert pair.terms.transfer_s == pytest.approx(0.003 + 512 * 1e-5)


def test_a_prompt_of_one_chunk_hides_nothing_of_its_transfer() -> None:
    pair, _ = options_of(PREFILL.but(cached=320), DECODE, num_tokens=500)
    assert pair.terms.transfer_s == pytest.approx(0.002 + 500 * 1e-6)


def test_the_terms_of_a_decode_worker_alone() -> None:
    _, alone = options_of(
        PREFILL, DECODE.but(cached=80, running=4, context=6_000, waiting=600), num_tokens=600
    )
    # 520 tokens in three chunks, each in a step with the four streams.
    compute_s = 3 * 0.002 + 520 * 1e-4 + (600**2 - 80**2) / 2 * 1e-8
    beside_s = 3 * (6_000 * 1e-8 + 4 * 5e-4)
    step_s = 0.002 + 6_000 * 1e-8 + 4 * 5e-4
    longer_s = (600 + 5) * 1e-8 + 5e-4
    _assert_terms(
        alone.terms,
        queue_s=0.06,
        pull_s=0.0,
        prefill_s=compute_s + beside_s,
        transfer_s=0.0,
        decode_wait_s=step_s + longer_s,
        stream_s=10 * (step_s + longer_s),
        # Four streams, and half of one to come, stand still for all of it but the fixed part.
        others_s=10 * longer_s * 4 + (compute_s - 3 * 0.002) * 4.5,
        inter_token_s=step_s + longer_s,
        longest_step_s=step_s + 256 * 1e-4 + 256 * 600 * 1e-8,
    )


def test_the_last_token_is_computed_even_if_all_is_cached() -> None:
    pair, alone = options_of(PREFILL.but(cached=512), DECODE.but(cached=512), num_tokens=512)
    assert (pair.num_uncached, alone.num_uncached) == (1, 1)


def test_room_comes_as_running_sequences_end() -> None:
    """Of a pool of 1,600 tokens 160 are free, and 32 held ones are of this prompt: 418 short."""
    full = DECODE.but(
        max_context_tokens=1_600, num_blocks=100, free_blocks=10, running=4, cached=32
    )
    pair, _ = options_of(PREFILL, full, num_tokens=600)
    step_s = 0.002 + 4 * 5e-4
    wait_s = (610 - 160 - 32) * step_s / 4
    longer_s = 605 * 1e-8 + 5e-4
    assert pair.terms.decode_wait_s == pytest.approx(wait_s + step_s + longer_s)


def _assert_terms(found: Breakdown, **wanted: float) -> None:
    for name, value in wanted.items():
        assert getattr(found, name) == pytest.approx(value), name
