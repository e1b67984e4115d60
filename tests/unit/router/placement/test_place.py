import numpy as np
import pytest
from support.standing import (
    Standing,
    demand_of,
    depths_of,
    fleet_of,
    placed,
    read_alone,
    refused,
    way,
)

from protocol.ids import Epoch, WorkerId
from protocol.messages import PrefixSource, StepModel
from router.placement.place import Placement, PlacementRefusal, PlacementRules, Preferred, place

P0, P1, D0, D1 = (
    Standing(name=name) for name in ("prefill-0", "prefill-1", "decode-0", "decode-1")
)
LENT = {"kv_address": "tcp://lender:1"}


@pytest.mark.parametrize(
    ("why", "standings", "num_tokens", "wanted"),
    [
        ("a long prompt goes apart", (P0, D0), 2_000, "prefill-0>decode-0"),
        ("a short one is sooner alone", (P0, D0), 20, "decode-0"),
        ("ties go by name, whatever the order", (D1, P1, D0, P0), 2_000, "prefill-0>decode-0"),
        (
            "what decode has cached need not travel",
            (P0, D0, D1.but(cached=1_984)),
            2_000,
            "decode-1",
        ),
        (
            "a prefix on a prefill worker attracts",
            (P0, P1.but(cached=1_600), D0),
            2_000,
            "prefill-1>decode-0",
        ),
        (
            "but not behind a longer queue than it saves",
            (P0, P1.but(cached=1_600, waiting=4_000), D0),
            2_000,
            "prefill-0>decode-0",
        ),
        (
            "a full prefill queue sends the prompt to an idle decode worker",
            (P0.but(waiting=20_000), D0),
            2_000,
            "decode-0",
        ),
        (
            "running streams keep prompts away from decode",
            (P0.but(waiting=4_000), D0.but(running=8)),
            2_000,
            "prefill-0>decode-0",
        ),
        (
            "the emptier decode worker takes the stream",
            (P0, D0.but(running=4), D1),
            2_000,
            "prefill-0>decode-1",
        ),
        (
            "long contexts make a decode worker slower than many short ones",
            (
                P0,
                D0.but(running=2, context=100_000, step=StepModel(0.002, 1e-4, 1e-7, 1e-4)),
                D1.but(running=4, context=4_000, step=StepModel(0.002, 1e-4, 1e-7, 1e-4)),
            ),
            2_000,
            "prefill-0>decode-1",
        ),
        (
            "no free blocks is a wait",
            (P0, D0.but(free_blocks=0, running=1), D1.but(running=1)),
            2_000,
            "prefill-0>decode-1",
        ),
        (
            "a pool full of this prompt's own prefix has room for it",
            (D0.but(free_blocks=10, running=1, cached=1_984), D1.but(running=1)),
            2_000,
            "decode-0",
        ),
        (
            "cached blocks that are free are not counted twice",
            (
                D0.but(max_context_tokens=3_200, num_blocks=200, free_blocks=50, running=1),
                D1.but(running=1),
            ),
            2_000,
            "decode-1",
        ),
        (
            "a slow network keeps the prompt where it is decoded",
            (P0, D0.but(rate=1e6)),
            2_000,
            "decode-0",
        ),
        (
            "a pair's own speed counts for that pair",
            (P0, P1, D0.but(links=(("prefill-0", 0.002, 1e7),))),
            2_000,
            "prefill-1>decode-0",
        ),
        ("other layouts are never paired", (P0.but(compat="other"), D0), 2_000, "decode-0"),
        (
            "a pool on a GPU hands nothing to one of a host",
            (P0.but(transports=("cuda_ipc", "nccl")), D0),
            2_000,
            "decode-0",
        ),
        (
            "one common way is enough",
            (P0.but(transports=("tcp",)), D0),
            2_000,
            "prefill-0>decode-0",
        ),
        (
            "a prefill pool too small is passed over",
            (P0.but(max_context_tokens=1_600, num_blocks=100), P1, D0),
            2_000,
            "prefill-1>decode-0",
        ),
        (
            "a prefill pool with room for one token only would finish the text",
            (P0.but(max_context_tokens=2_001), P1.but(max_context_tokens=2_002), D0),
            2_000,
            "prefill-1>decode-0",
        ),
        (
            "a decode pool too small is passed over",
            (P0, D0.but(max_context_tokens=2_016, num_blocks=126), D1),
            2_000,
            "prefill-0>decode-1",
        ),
        (
            "a slower machine is passed over",
            (P0.but(step=StepModel(0.002, 3e-4, 0.0, 1e-4)), P1, D0),
            2_000,
            "prefill-1>decode-0",
        ),
    ],
)
def test_place(why: str, standings: tuple[Standing, ...], num_tokens: int, wanted: str) -> None:
    assert way(placed(*standings, num_tokens=num_tokens)) == wanted, why


def test_unmeasured_workers_are_taken_for_their_measured_peers() -> None:
    fresh = P1.but(step=StepModel())
    assert way(placed(P0.but(waiting=100), fresh, D0)) == "prefill-1>decode-0"


def test_nobody_measured_is_no_reason_to_refuse() -> None:
    unmeasured = {"step": StepModel(), "rate": 0.0}
    assert way(placed(P0.but(**unmeasured), D0.but(**unmeasured))) == "prefill-0>decode-0"


def test_local_prefill_can_be_forbidden_whatever_the_cost() -> None:
    assert way(placed(P0, D0, num_tokens=20, local_prefill="never")) == "prefill-0>decode-0"
    assert way(placed(D0, num_tokens=20, local_prefill="never")) == "decode-0"


def test_a_queue_is_worked_off_as_time_passes_but_not_by_a_silent_worker() -> None:
    queued = P0.but(waiting=9_000)
    waits = [placed(queued, D0, now=now, local_prefill="never").terms for now in (0.0, 0.4, 5.0)]
    assert [round(terms.queue_s, 3) for terms in waits if terms] == [0.9, 0.5, 0.0]
    long = P0.but(waiting=90_000)
    silent = placed(long, D0, now=60.0, local_prefill="never").terms
    assert silent is not None and round(silent.queue_s, 3) == 8.0


# -- streams that run are not made to wait for a prompt -----------------------------------


def test_a_prompt_is_not_computed_beside_streams_that_it_would_hold_up_too_long() -> None:
    """Of 1,000 tokens a chunk: 102 ms between two tokens, though it would be sooner."""
    busy = P0.but(waiting=40_000)
    stream = D0.but(running=1, max_step_tokens=1_000)
    assert way(placed(busy, stream, inter_token_target_s=0.2)) == "decode-0"
    apart = placed(busy, stream, inter_token_target_s=0.1)
    assert way(apart) == "prefill-0>decode-0"
    assert "local (stalls streams)" in apart.reason
    smaller = stream.but(max_step_tokens=500)
    assert way(placed(busy, smaller, inter_token_target_s=0.1)) == "decode-0"
    idle = stream.but(running=0)
    assert way(placed(busy, idle, inter_token_target_s=0.1)) == "decode-0"


def test_without_a_prefill_worker_streams_wait() -> None:
    assert way(placed(D0.but(running=8), inter_token_target_s=0.001)) == "decode-0"


# -- prefixes on third workers ------------------------------------------------------------


def test_a_prefix_is_pulled_from_a_third_worker_where_that_is_sooner() -> None:
    lender = P1.but(cached=1_600, waiting=50_000, **LENT)
    placement = placed(P0, lender, D0.but(running=40))
    assert way(placement) == "prefill-0>decode-0"
    assert placement.prefix_source == PrefixSource(
        worker=WorkerId("prefill-1"), epoch=Epoch(7), address="tcp://lender:1", num_tokens=1_600
    )
    assert placement.num_uncached_tokens == 400
    assert "pulls 1600 from prefill-1" in placement.reason
    assert placement.terms is not None
    # 2 ms and 1,600 tokens of 1,000 bytes at 1 GB/s, then one step of 400 tokens
    assert placement.terms.pull_s == pytest.approx(0.002 + 0.0016)
    assert placement.terms.prefill_s == pytest.approx(0.002 + 0.04)


def test_what_is_cached_already_is_not_pulled_again() -> None:
    lender = P1.but(cached=1_600, waiting=50_000, **LENT)
    placement = placed(P0.but(cached=800), lender, D0.but(running=40))
    assert placement.terms is not None and placement.num_uncached_tokens == 400
    assert placement.terms.pull_s == pytest.approx(0.002 + 0.0008)


def test_what_a_worker_is_only_expected_to_have_is_not_pulled_from_it() -> None:
    here = P0, P1.but(cached=1_600, waiting=50_000, **LENT), D0.but(running=40)
    depths, rules = depths_of(*here), PlacementRules(worker_queue_s=1e9)
    found = [
        place(
            fleet_of(*here), demand_of(2_000, 100), depths=depths, held=held, rules=rules, now=0.0
        )
        for held in (depths, np.zeros_like(depths))
    ]
    sources = [one.prefix_source for one in found if isinstance(one, Placement)]
    assert [source is None for source in sources] == [False, True]


def test_a_decode_worker_alone_pulls_too() -> None:
    placement = placed(D0, D1.but(cached=1_984, waiting=50_000, running=40, **LENT))
    assert way(placement) == "decode-0"
    assert placement.prefix_source is not None
    assert placement.prefix_source.worker == "decode-1"


@pytest.mark.parametrize(("num_tokens", "num_asked"), [(16, None), (1_600, 1_584), (1_601, 1_600)])
def test_whole_blocks_are_asked_for_since_the_last_token_is_computed(
    num_tokens: int, num_asked: int | None
) -> None:
    lender = D1.but(cached=1_600, waiting=90_000, running=40, **LENT)
    slow = D0.but(step=StepModel(fixed_s=0.002, token_s=0.1, attended_s=0.0, sequence_s=1e-4))
    placement = placed(slow, lender, num_tokens=num_tokens)
    assert way(placement) == "decode-0"
    assert placement.num_uncached_tokens == num_tokens - (num_asked or 0)
    source = placement.prefix_source
    assert (None if source is None else source.num_tokens) == num_asked


def test_a_pull_that_the_queue_hides_costs_nothing() -> None:
    lender = P1.but(cached=1_600, waiting=50_000, **LENT)
    placement = placed(P0.but(waiting=500), lender, D0.but(running=4, waiting=50_000))
    assert placement.terms is not None
    assert placement.prefix_source is not None and placement.terms.pull_s == 0.0


@pytest.mark.parametrize(
    ("why", "lender"),
    [
        ("it lends nothing", P1.but(cached=1_600, waiting=50_000)),
        ("other layout", P1.but(cached=1_600, waiting=50_000, compat="other", **LENT)),
        ("no common way", P1.but(cached=1_600, waiting=50_000, transports=("nccl",), **LENT)),
        ("a few tokens are computed sooner", P1.but(cached=16, waiting=50_000, **LENT)),
    ],
)
def test_nothing_is_pulled_where(why: str, lender: Standing) -> None:
    assert placed(P0, lender, D0).prefix_source is None, why


def test_a_slow_link_is_not_pulled_over() -> None:
    lender = P1.but(cached=1_600, waiting=50_000, **LENT)
    slow = P0.but(links=(("prefill-1", 0.002, 1e6),))
    assert placed(slow, lender, D0, local_prefill="never").prefix_source is None


def test_of_lenders_with_as_much_the_less_loaded_lends() -> None:
    lenders = [
        D1.but(name=f"decode-{n}", cached=1_600, waiting=9_000 - n, running=9, **LENT)
        for n in (3, 4)
    ]
    source = placed(P0, D0, *lenders).prefix_source
    assert source is not None and source.worker == "decode-4"


# -- sessions -----------------------------------------------------------------------------


def test_a_session_stays_with_its_workers_while_they_are_hardly_later() -> None:
    mine = Preferred(decode=WorkerId("decode-1"), prefill=WorkerId("prefill-1"))
    slower, never = P1.but(waiting=3_000), "never"
    assert way(placed(P0, slower, D0, D1)) == "prefill-0>decode-0"
    kept = placed(P0, slower, D0, D1, preferred=mine, session_slack_s=0.4, local_prefill=never)
    assert way(kept) == "prefill-1>decode-1" and "with its session" in kept.reason
    left = placed(P0, slower, D0, D1, preferred=mine, session_slack_s=0.2, local_prefill=never)
    assert way(left) == "prefill-0>decode-0"


def test_of_a_session_without_a_prefill_worker_any_will_do() -> None:
    mine = Preferred(decode=WorkerId("decode-1"), prefill=None)
    assert way(placed(P0, P1, D0, D1, preferred=mine)) == "prefill-0>decode-1"


def test_a_session_whose_worker_cannot_hold_the_request_goes_elsewhere() -> None:
    mine = Preferred(decode=WorkerId("decode-1"), prefill=None)
    small = D1.but(max_context_tokens=500)
    assert way(placed(P0, D0, small, preferred=mine)) == "prefill-0>decode-0"
    gone = Preferred(decode=WorkerId("decode-9"), prefill=None)
    assert way(placed(P0, D0, preferred=gone)) == "prefill-0>decode-0"


# -- what is said -------------------------------------------------------------------------


def test_the_reason_names_the_way_the_work_both_costs_and_every_term() -> None:
    placement = placed(P0.but(cached=128, waiting=100), D0.but(running=2), num_tokens=540)
    assert placement.reason == (
        "prefill-0>decode-0; uncached 412 of 540 tokens; 0.071 s against 0.078 s local; first "
        "token 0.058 s = queue 0.010 + pull 0.000 + prefill 0.043 + transfer 0.003 + decode 0.002; "
        "stream 0.230 s, others 0.020 s at 2.3 ms a token"
    )


def test_the_reason_of_a_lone_decode_worker_says_so() -> None:
    assert placed(D0, num_tokens=40).reason.startswith(
        "decode-0; uncached 40 of 40 tokens; no prefill worker; first token 0."
    )


def test_the_reason_fits_a_header_whatever_workers_are_called() -> None:
    placement = placed(Standing(name="décode\r\n"), num_tokens=40)
    assert placement.reason.startswith("d?code??; ")
    assert placement.reason.isascii() and placement.reason.isprintable()


# -- refusals -----------------------------------------------------------------------------


def test_no_decode_worker_is_a_refusal() -> None:
    assert refused(P0) == PlacementRefusal(why="no_decode_worker", reason="no decode worker")


def test_what_no_pool_can_ever_hold_is_too_long_with_the_numbers() -> None:
    small = D0.but(num_blocks=10, max_context_tokens=160)
    refusal = refused(P0, small, num_tokens=100, max_output_tokens=61)
    assert refusal.why == "too_long"
    assert refusal.reason == "161 tokens with the answer; the largest decode worker holds 160"
    assert isinstance(placed(P0, small, num_tokens=100, max_output_tokens=60), Placement)


def test_where_everybody_has_more_than_enough_to_do_a_request_waits() -> None:
    """By names: a queue of 3 s, no block free, a chunk that streams would wait too long for."""
    long, full = {"waiting": 30_000}, {"free_blocks": 0, "running": 4}
    busy = D0.but(**long, running=1)
    for standings in ((D0.but(**long),), (P0.but(**long), busy), (P0, D0.but(**full))):
        refusal = refused(*standings)
        assert (refusal.why, refusal.reason) == (
            "saturated",
            "every worker has 2 s of work before it, or no room",
        )
    assert refused(P0.but(**long), D0.but(running=1), inter_token_target_s=0.01).why == "saturated"
    assert placed(P0.but(**long), D0, worker_queue_s=2.0).prefill is None
    assert placed(P0, D0.but(**long), worker_queue_s=2.0).prefill == "prefill-0"
    assert placed(P0.but(**long), P1, D0, worker_queue_s=2.0).prefill == "prefill-1"


def test_a_queue_that_is_still_the_soonest_is_joined_while_others_are_free() -> None:
    """Waiting for what is cached there is cheaper than computing it elsewhere."""
    warm = P0.but(waiting=30_000, cached=7_984)
    slow = P1.but(step=StepModel(0.002, 1e-3, 0.0, 1e-4))
    found = placed(
        warm, slow, D0.but(running=1, waiting=90_000), num_tokens=8_000, worker_queue_s=2.0
    )
    assert found.prefill == "prefill-0"


def test_sixty_four_workers_of_each_role_still_have_one_cheapest_pair() -> None:
    prefills = [Standing(name=f"prefill-{n:02}", waiting=64 - n) for n in range(64)]
    decodes = [Standing(name=f"decode-{n:02}", running=64 - n) for n in range(64)]
    assert way(placed(*prefills, *decodes)) == "prefill-63>decode-63"


# -- prompts that are read and no more ----------------------------------------------------


@pytest.mark.parametrize(
    ("standings", "worker"),
    [
        ((D0, P1, P0), "prefill-0"),
        ((D0, P0.but(waiting=9_000), P1), "prefill-1"),
        ((P0, P1.but(cached=1_984), D0), "prefill-1"),
        ((P0.but(max_context_tokens=100), D1, D0), "decode-0"),
        ((D0.but(cached=1_984), P0), "prefill-0"),
    ],
)
def test_a_prompt_alone_is_for_the_prefill_worker_that_is_done_first(
    standings: tuple[Standing, ...], worker: str
) -> None:
    placement = read_alone(*standings, num_tokens=2_000)
    assert isinstance(placement, Placement)
    assert (placement.prefill, placement.decode) == (None, worker)
    assert placement.reason.startswith(f"{worker}; uncached")


def test_a_prompt_that_fits_nowhere_is_refused() -> None:
    too_long = read_alone(P0, D0, num_tokens=8_192, max_output_tokens=1)
    assert isinstance(too_long, PlacementRefusal) and too_long.why == "too_long"
    assert isinstance(read_alone(P0, num_tokens=8_192), Placement)
    nobody = read_alone(num_tokens=1)
    assert isinstance(nobody, PlacementRefusal) and nobody.why == "no_decode_worker"
