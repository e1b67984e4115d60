"""Who may get a request at this moment: values in, a placement out."""

from msgspec.structs import replace
from support.routed_request import D, P, already_ended, emit, gone, hear, route_alone
from support.words import LAYOUT, beat, registration

from protocol.blocks import block_hashes, chain_seed
from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import Role, Sampling
from router.admission.queued_request import QueuedRequest
from router.placement.place import Placement, PlacementRefusal
from router.placement.prefix_index import PrefixIndex
from router.requests.candidates import Candidates
from router.requests.context import RequestContext
from router.requests.events import GenerationRequest
from router.requests.request import RoutedRequest
from router.workers.worker import ALONE_S, KnownWorker

OTHER = WorkerId("decode-1")
PROMPT = tuple(range(9))
NOW = 100.0


def worker(
    name: WorkerId, *, compat: str = "same", dynamic_after: int | None = None
) -> KnownWorker:
    role: Role = "prefill" if name.startswith("prefill") else "decode"
    told = registration(name, role=role)
    made = KnownWorker(replace(told, compat=compat, dynamic_after=dynamic_after))
    made.note_beat(beat(), now=0.0)
    return made


def context(name: str = "r", *, salt: str = "") -> RequestContext:
    request = GenerationRequest(
        id=RequestId(name),
        token_ids=PROMPT,
        sampling=Sampling(seed=1, max_tokens=4),
        salt=salt,
        deadline_s=60.0,
    )
    routed = RoutedRequest(request, RequestId(f"{name}~1"), already_ended)
    queued = QueuedRequest(
        tenant="", weight=1.0, band=0, num_prompt_tokens=1, num_output_tokens=1, ends_at=NOW + 60.0
    )
    return RequestContext(routed=routed, queued=queued, begun_at=NOW, ends_at=NOW + 60.0)


def candidates() -> tuple[Candidates, PrefixIndex]:
    index = PrefixIndex()
    for name in (P, D, OTHER):
        index.follow_worker(name, Epoch(1))
    return Candidates(index=index, prefer="cheapest"), index


def decode_of(placement: Placement | PlacementRefusal) -> WorkerId:
    assert isinstance(placement, Placement)
    return placement.decode


def test_of_equal_workers_the_first_by_name_is_chosen() -> None:
    asked, _ = candidates()
    ready = [worker(D), worker(OTHER)]
    assert decode_of(asked.place_request(context(), ready, now=NOW)) == D


def test_a_worker_that_refused_is_not_asked_again() -> None:
    asked, _ = candidates()
    given = context()
    given.refused.add(D)
    assert decode_of(asked.place_request(given, [worker(D), worker(OTHER)], now=NOW)) == OTHER
    refusal = asked.place_request(given, [worker(D)], now=NOW)
    assert isinstance(refusal, PlacementRefusal) and refusal.why == "no_decode_worker"


def test_a_worker_that_failed_the_request_is_the_last_resort() -> None:
    asked, _ = candidates()
    given = context()
    given.suspects.add(D)
    assert decode_of(asked.place_request(given, [worker(D), worker(OTHER)], now=NOW)) == OTHER
    assert decode_of(asked.place_request(given, [worker(D)], now=NOW)) == D


def test_a_worker_that_refused_is_no_last_resort() -> None:
    asked, _ = candidates()
    given = context()
    given.suspects.add(D)
    given.refused.add(OTHER)
    assert decode_of(asked.place_request(given, [worker(D), worker(OTHER)], now=NOW)) == D


def test_cached_blocks_attract_the_prompt() -> None:
    asked, index = candidates()
    hashes = block_hashes(
        PROMPT, block_tokens=LAYOUT.block_tokens, seed=chain_seed(compat="same", salt="")
    )
    index.apply_event(OTHER, Epoch(1), sequence=1, kind="stored", hashes=hashes)
    placement = asked.place_request(context(), [worker(D), worker(OTHER)], now=NOW)
    assert isinstance(placement, Placement)
    assert (placement.decode, placement.num_uncached_tokens) == (OTHER, 1)


def test_a_prefix_of_another_salt_attracts_nothing() -> None:
    asked, index = candidates()
    hashes = block_hashes(
        PROMPT, block_tokens=LAYOUT.block_tokens, seed=chain_seed(compat="same", salt="a")
    )
    index.apply_event(OTHER, Epoch(1), sequence=1, kind="stored", hashes=hashes)
    ready = [worker(D), worker(OTHER)]
    assert decode_of(asked.place_request(context(salt="a"), ready, now=NOW)) == OTHER
    assert decode_of(asked.place_request(context(salt="b"), ready, now=NOW)) == D


def test_a_prompt_that_a_dynamic_rope_turns_by_its_length_is_sought_by_it() -> None:
    asked, index = candidates()
    seed = chain_seed(compat="same", reach=len(PROMPT))
    hashes = block_hashes(PROMPT, block_tokens=LAYOUT.block_tokens, seed=seed)
    index.apply_event(OTHER, Epoch(1), sequence=1, kind="stored", hashes=hashes)
    for after, wanted in ((8, OTHER), (9, D), (None, D)):
        ready = [worker(D, dynamic_after=after), worker(OTHER, dynamic_after=after)]
        assert decode_of(asked.place_request(context(), ready, now=NOW)) == wanted


def test_each_compat_hash_has_a_chain_of_its_own() -> None:
    asked, _ = candidates()
    given = context()
    asked.place_request(given, [worker(D), worker(OTHER, compat="other")], now=NOW)
    assert given.hashes.keys() == {"same", "other"}
    assert given.hashes["same"] != given.hashes["other"]


def test_what_was_just_sent_counts_as_load_and_as_cached_there() -> None:
    asked, _ = candidates()
    ready = [worker(D), worker(OTHER)]
    first = context("first")
    placement = asked.place_request(first, ready, now=NOW)
    assert isinstance(placement, Placement)
    asked.note_placed(first, placement, ready, now=NOW)
    sent = ready[0].candidate(num_cached_tokens=0)
    assert (sent.num_waiting_tokens, sent.num_running) == (len(PROMPT), 1)
    assert decode_of(asked.place_request(context("beside it"), ready, now=NOW)) == OTHER

    asked.note_ended(first, ready)
    assert ready[0].candidate(num_cached_tokens=0).num_running == 0
    again = asked.place_request(context("after it"), ready, now=NOW + 1.0)
    assert isinstance(again, Placement)
    assert (again.decode, again.num_uncached_tokens) == (D, 1)


def test_apart_the_prompt_is_the_prefill_workers_load_alone() -> None:
    asked, _ = candidates()
    ready = [worker(D), worker(P)]
    given = context()
    apart = Placement(prefill=P, decode=D, reason="test", cost_s=0.0, num_uncached_tokens=9)
    asked.note_placed(given, apart, ready, now=NOW)
    loads = [one.candidate(num_cached_tokens=0) for one in ready]
    assert [(load.num_waiting_tokens, load.num_running) for load in loads] == [(0, 1), (9, 1)]


def test_the_next_attempt_is_placed_with_the_tokens_so_far() -> None:
    asked, _ = candidates()
    given = context()
    route_alone(given.routed)
    hear(given.routed, D, emit(0, 8), emit(1, 9), gone())
    placement = asked.place_request(given, [worker(D)], now=NOW)
    assert isinstance(placement, Placement)
    assert placement.reason == "decode-0; uncached 11 of 11 tokens; no prefill worker"


def test_a_request_that_no_worker_could_ever_hold_is_refused_with_the_numbers() -> None:
    asked, _ = candidates()
    small = KnownWorker(replace(registration(D), num_blocks=2, max_context_tokens=8))
    small.note_beat(beat(), now=0.0)
    refusal = asked.place_request(context(), [small], now=NOW)
    assert isinstance(refusal, PlacementRefusal)
    assert (refusal.why, refusal.reason) == (
        "too_long",
        "13 tokens with the answer; the largest decode worker holds 8",
    )


def suspect() -> RequestContext:
    """It was among the last that a worker was given before it was lost."""
    given = context("suspect")
    given.routed.num_suspected, given.alone_until = 1, NOW + 3.0
    return given


def placed(
    asked: Candidates, given: RequestContext, ready: list[KnownWorker], *, now: float = NOW
) -> WorkerId:
    placement = asked.place_request(given, ready, now=now)
    assert isinstance(placement, Placement)
    asked.note_placed(given, placement, ready, now=now)
    return placement.decode


def test_a_suspect_goes_where_nobody_is_and_nobody_joins_it_until_it_is_heard() -> None:
    asked, _ = candidates()
    ready = [worker(D), worker(OTHER)]
    assert placed(asked, context("first"), ready) == D
    odd = suspect()
    assert placed(asked, odd, ready) == OTHER
    assert [placed(asked, context(f"r{i}"), ready) for i in range(4)] == [D] * 4
    ready[1].note_heard(odd.routed.wire_id, 0)
    assert placed(asked, context("later"), ready) == OTHER


def test_a_suspect_waits_for_workers_without_others_then_takes_one_where_nobody_is_new() -> None:
    asked, _ = candidates()
    ready = [worker(D), worker(OTHER)]
    streaming, new, odd = context("streaming"), context("new"), suspect()
    assert [placed(asked, one, ready) for one in (streaming, new)] == [D, OTHER]
    ready[0].note_heard(streaming.routed.wire_id, 0)
    refused = asked.place_request(odd, ready, now=NOW + 1.0)
    assert isinstance(refused, PlacementRefusal) and refused.why == "held"
    assert placed(asked, odd, ready, now=NOW + 4.0) == D
    assert placed(asked, context("later"), ready, now=NOW + 4.0) == OTHER


def test_where_a_suspect_holds_the_only_worker_others_wait_for_it_to_be_heard() -> None:
    asked, _ = candidates()
    ready, odd = [worker(D)], suspect()
    assert placed(asked, odd, ready) == D
    refused = asked.place_request(context(), ready, now=NOW)
    assert isinstance(refused, PlacementRefusal) and refused.why == "held"
    assert placed(asked, context("late"), ready, now=NOW + ALONE_S) == D


def test_a_suspect_is_prefilled_apart_where_it_would_be_otherwise() -> None:
    asked = Candidates(index=PrefixIndex(), prefer="prefill")
    ready, odd = [worker(P), worker(D)], suspect()
    ready[0].note_beat(beat(running=1), now=NOW)
    refused = asked.place_request(odd, ready, now=NOW)
    assert isinstance(refused, PlacementRefusal) and refused.why == "held"
    ready[0].note_beat(beat(), now=NOW)
    placement = asked.place_request(odd, ready, now=NOW)
    assert isinstance(placement, Placement) and placement.prefill == P
