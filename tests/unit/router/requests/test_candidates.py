"""Who may get a request at this moment: values in, a placement out."""

from collections import Counter
from typing import Any

from msgspec.structs import replace
from support.routed_request import D, P, emit, gone, hear, route_alone
from support.words import LAYOUT, beat, registration

from protocol.blocks import chain_seed, packed_hashes
from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import Load, PrefixSource, Role, Sampling, Speeds
from router.placement.fleet import Fleet
from router.placement.place import DEFAULT_RULES, Placement, PlacementRefusal, PlacementRules
from router.prefix.prefix_index import PrefixIndex
from router.requests.candidates import CLEARED_S, Candidates
from router.requests.context import RequestContext
from router.requests.events import GenerationRequest
from router.requests.request import RoutedRequest
from router.workers.worker import ALONE_S, KnownWorker

OTHER = WorkerId("decode-1")
PROMPT = tuple(range(9))
NOW = 100.0


class Asked(Candidates):
    """And the index and the workers that they are asked of, all ready."""

    def __init__(self, *names: WorkerId, rules: PlacementRules = DEFAULT_RULES) -> None:
        self.index, self.fleet = PrefixIndex(), Fleet()
        self.workers: dict[WorkerId, KnownWorker] = {}
        super().__init__(index=self.index, fleet=self.fleet, workers=self.workers, rules=rules)
        for name in names:
            self.add(name)

    def add(self, name: WorkerId, **changes: Any) -> KnownWorker:
        role: Role = "prefill" if name.startswith("prefill") else "decode"
        made = KnownWorker(replace(registration(name, role=role), **changes))
        made.join_fleet(self.fleet)
        made.note_beat(beat(), now=NOW)
        self.workers[name] = made
        self.index.follow_worker(name, Epoch(1))
        return made

    def store(self, name: WorkerId, packed: bytes) -> None:
        epoch = Epoch(1)
        self.index.apply_event(name, epoch, sequence=1, kind="stored", packed=packed, now=NOW)

    def load(self, name: WorkerId) -> tuple[bool, int]:
        """Whether it has prompts to compute, and its sequences."""
        row = self.workers[name].row
        return bool(row["busy_until_s"] > NOW), int(row["running"])


def context(name: str = "r", *, salt: str = "", session: str = "") -> RequestContext:
    request = GenerationRequest(
        id=RequestId(name),
        token_ids=PROMPT,
        sampling=Sampling(seed=1, max_tokens=4),
        salt=salt,
        deadline_s=60.0,
        session=session,
    )
    routed = RoutedRequest(request, RequestId(f"{name}~1"))
    return RequestContext(routed=routed, begun_at=NOW, ends_at=NOW + 60.0)


def decode_of(placement: Placement | PlacementRefusal) -> WorkerId:
    assert isinstance(placement, Placement)
    return placement.decode


def pair_of(placement: Placement | PlacementRefusal) -> tuple[WorkerId | None, WorkerId]:
    assert isinstance(placement, Placement), placement
    return placement.prefill, placement.decode


def test_of_equal_workers_the_first_by_name_is_chosen() -> None:
    assert decode_of(Asked(OTHER, D).place_request(context(), now=NOW)) == D


def test_a_worker_that_refused_is_not_asked_again() -> None:
    asked, given = Asked(D, OTHER), context()
    given.refused.add(D)
    assert decode_of(asked.place_request(given, now=NOW)) == OTHER
    refusal = Asked(D).place_request(given, now=NOW)
    assert isinstance(refusal, PlacementRefusal) and refusal.why == "no_decode_worker"


def test_a_worker_that_failed_the_request_is_the_last_resort() -> None:
    given = context()
    given.suspects.add(D)
    assert decode_of(Asked(D, OTHER).place_request(given, now=NOW)) == OTHER
    assert decode_of(Asked(D).place_request(given, now=NOW)) == D


def test_a_worker_that_failed_the_request_does_not_get_it_while_another_is_only_busy() -> None:
    asked, given = Asked(D, OTHER), context()
    given.suspects.add(D)
    busy = replace(beat(), load=Load(running=1, waiting=9, waiting_tokens=90_000))
    asked.workers[OTHER].note_beat(busy, now=NOW)
    refusal = asked.place_request(given, now=NOW)
    assert isinstance(refusal, PlacementRefusal) and refusal.why == "saturated"


def test_a_worker_that_refused_is_no_last_resort() -> None:
    given = context()
    given.suspects.add(D)
    given.refused.add(OTHER)
    assert decode_of(Asked(D, OTHER).place_request(given, now=NOW)) == D


def apart(asked: Asked, decode: WorkerId, *prefills: WorkerId) -> None:
    """No KV comes to it from these."""
    asked.workers[decode].note_beat(replace(beat(), unreachable=prefills), now=NOW)


PAIRS = PlacementRules(local_prefill="never")
OTHER_P = WorkerId("prefill-1")


def test_two_between_which_no_kv_moves_are_not_paired() -> None:
    asked = Asked(P, OTHER_P, D, rules=PAIRS)
    assert pair_of(asked.place_request(context(), now=NOW)) == (P, D)
    apart(asked, D, P)
    assert pair_of(asked.place_request(context(), now=NOW)) == (OTHER_P, D)


def test_a_decode_worker_to_which_no_kv_comes_at_all_is_passed_over() -> None:
    asked = Asked(P, OTHER_P, D, OTHER, rules=PAIRS)
    apart(asked, D, P, OTHER_P)
    assert pair_of(asked.place_request(context(), now=NOW))[1] == OTHER


def test_a_decode_worker_to_which_no_kv_comes_prefills_for_itself() -> None:
    asked = Asked(P, OTHER_P, D, rules=PAIRS)
    apart(asked, D, P, OTHER_P)
    assert pair_of(asked.place_request(context(), now=NOW)) == (None, D)


def prompt_hashes(*, salt: str = "", reach: int = 0) -> bytes:
    seed = chain_seed(compat="same", salt=salt, reach=reach)
    return packed_hashes(PROMPT, block_tokens=LAYOUT.block_tokens, seed=seed)


def test_cached_blocks_attract_the_prompt() -> None:
    asked = Asked(D, OTHER)
    asked.store(OTHER, prompt_hashes())
    placement = asked.place_request(context(), now=NOW)
    assert isinstance(placement, Placement)
    assert (placement.decode, placement.num_uncached_tokens) == (OTHER, 1)


def test_a_prefix_of_another_salt_attracts_nothing() -> None:
    asked = Asked(D, OTHER)
    asked.store(OTHER, prompt_hashes(salt="a"))
    assert decode_of(asked.place_request(context(salt="a"), now=NOW)) == OTHER
    assert decode_of(asked.place_request(context(salt="b"), now=NOW)) == D


def test_a_prompt_that_a_dynamic_rope_turns_by_its_length_is_sought_by_it() -> None:
    for after, wanted in ((8, OTHER), (9, D), (None, D)):
        asked = Asked()
        for name in (D, OTHER):
            asked.add(name, dynamic_after=after)
        asked.store(OTHER, prompt_hashes(reach=len(PROMPT)))
        assert decode_of(asked.place_request(context(), now=NOW)) == wanted


def test_each_compat_hash_has_a_chain_of_its_own() -> None:
    asked, given = Asked(D), context()
    asked.add(OTHER, compat="other")
    asked.place_request(given, now=NOW)
    assert given.hashes.keys() == {"same", "other"}
    assert given.hashes["same"] != given.hashes["other"]


def test_what_was_just_sent_counts_as_load_and_as_cached_there() -> None:
    asked, first = Asked(D, OTHER), context("first")
    placement = asked.place_request(first, now=NOW)
    assert isinstance(placement, Placement)
    begin(asked, first, placement)
    assert asked.load(D) == (True, 1)
    assert decode_of(asked.place_request(context("beside it"), now=NOW)) == OTHER

    asked.note_ended(first)
    assert asked.load(D) == (False, 0)
    again = asked.place_request(context("after it"), now=NOW + 1.0)
    assert isinstance(again, Placement)
    assert (again.decode, again.num_uncached_tokens) == (D, 1)


def test_apart_the_prompt_is_the_prefill_workers_load_alone() -> None:
    asked, given = Asked(D, P), context()
    apart = Placement(
        prefill=P, decode=D, reason="test", cost_s=0.0, num_uncached_tokens=9, prefill_s=0.5
    )
    begin(asked, given, apart)
    assert (asked.load(D), asked.load(P)) == ((False, 1), (True, 1))


def test_the_next_attempt_is_placed_with_the_tokens_so_far() -> None:
    asked, given = Asked(D), context()
    route_alone(given.routed)
    hear(given.routed, D, emit(0, 8), emit(1, 9), gone())
    placement = asked.place_request(given, now=NOW)
    assert isinstance(placement, Placement)
    assert placement.reason.startswith("decode-0; uncached 11 of 11 tokens; no prefill worker; ")


def test_a_stream_goes_on_by_the_numerics_that_it_began_with_while_a_worker_has_them() -> None:
    """Of one version in two dtypes, as while one is rolled out."""
    asked, given = Asked(D), context()
    unlike, like = asked.add(OTHER, compat="float32"), asked.add(WorkerId("decode-2"))
    placed(asked, given)
    hear(given.routed, D, emit(0, 10))
    given.suspects.add(D)
    assert decode_of(asked.place_request(given, now=NOW)) == like.id
    assert decode_of(asked.place_request(context("new"), now=NOW)) == unlike.id
    given.refused.add(like.id)
    assert decode_of(asked.place_request(given, now=NOW)) == unlike.id


def test_what_has_said_nothing_goes_to_any_numerics() -> None:
    asked, given = Asked(D), context()
    unlike = asked.add(OTHER, compat="float32")
    asked.add(WorkerId("decode-2"))
    placed(asked, given)
    given.suspects.add(D)
    assert decode_of(asked.place_request(given, now=NOW)) == unlike.id


def test_a_request_that_no_worker_could_ever_hold_is_refused_with_the_numbers() -> None:
    asked = Asked()
    asked.add(D, num_blocks=2, max_context_tokens=8)
    refusal = asked.place_request(context(), now=NOW)
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


def begin(asked: Asked, given: RequestContext, placement: Placement, *, now: float = NOW) -> None:
    asked.note_placed(given, placement, now=now)
    prefill = None if placement.prefill is None else asked.workers[placement.prefill]
    decode = asked.workers[placement.decode]
    given.routed.begin_attempt("test", prefill=prefill, decode=decode, remaining_s=60.0)


def placed(asked: Asked, given: RequestContext, *, now: float = NOW) -> WorkerId:
    placement = asked.place_request(given, now=now)
    assert isinstance(placement, Placement)
    begin(asked, given, placement, now=now)
    return placement.decode


def test_a_suspect_goes_where_nobody_is_and_nobody_joins_it_until_it_is_heard() -> None:
    asked = Asked(D, OTHER)
    assert placed(asked, context("first")) == D
    odd = suspect()
    assert placed(asked, odd) == OTHER
    assert [placed(asked, context(f"r{i}")) for i in range(2)] == [D] * 2
    asked.workers[OTHER].note_heard(odd.routed.wire_id, 0)
    assert placed(asked, context("later")) == OTHER


def test_a_suspect_waits_for_workers_without_others_then_takes_one_where_nobody_is_new() -> None:
    asked = Asked(D, OTHER)
    streaming, new, odd = context("streaming"), context("new"), suspect()
    assert [placed(asked, one) for one in (streaming, new)] == [D, OTHER]
    asked.workers[D].note_heard(streaming.routed.wire_id, 0)
    refused = asked.place_request(odd, now=NOW + 1.0)
    assert isinstance(refused, PlacementRefusal) and refused.why == "held"
    assert placed(asked, odd, now=NOW + 4.0) == D
    assert placed(asked, context("later"), now=NOW + 4.0) == OTHER


def test_where_a_suspect_holds_the_only_worker_others_wait_for_it_to_be_heard() -> None:
    asked, odd = Asked(D), suspect()
    assert placed(asked, odd) == D
    refused = asked.place_request(context(), now=NOW)
    assert isinstance(refused, PlacementRefusal) and refused.why == "held"
    assert placed(asked, context("late"), now=NOW + ALONE_S) == D


def test_a_suspect_is_prefilled_apart_where_it_would_be_otherwise() -> None:
    asked, odd = Asked(P, D, rules=PlacementRules(local_prefill="never")), suspect()
    asked.workers[P].note_beat(beat(running=1), now=NOW)
    refused = asked.place_request(odd, now=NOW)
    assert isinstance(refused, PlacementRefusal) and refused.why == "held"
    asked.workers[P].note_beat(beat(), now=NOW)
    placement = asked.place_request(odd, now=NOW)
    assert isinstance(placement, Placement) and placement.prefill == P


def test_newcomers_make_way_for_a_suspect_that_found_no_worker_without_others() -> None:
    asked, odd = Asked(D, OTHER), suspect()
    first, second = context("first"), context("second")
    assert [placed(asked, one) for one in (first, second)] == [D, OTHER]
    refused = asked.place_request(odd, now=NOW + 3.5)
    assert isinstance(refused, PlacementRefusal) and refused.why == "held"
    assert placed(asked, context("new"), now=NOW + 3.5) == OTHER
    asked.workers[D].note_heard(first.routed.wire_id, 0)
    assert placed(asked, odd, now=NOW + 3.6) == D
    asked.note_ended(odd)
    assert placed(asked, context("later"), now=NOW + 3.7) == D


def test_a_suspect_that_ends_leaves_its_cleared_worker_to_others() -> None:
    asked, odd, first = Asked(D), suspect(), context("first")
    assert placed(asked, first) == D
    assert isinstance(asked.place_request(odd, now=NOW + 3.5), PlacementRefusal)
    refused = asked.place_request(context("new"), now=NOW + 3.5)
    assert isinstance(refused, PlacementRefusal) and refused.why == "held"
    asked.note_ended(odd)
    assert placed(asked, context("new"), now=NOW + 3.5) == D


def test_a_suspect_does_not_wait_for_an_empty_worker_for_ever() -> None:
    asked, odd = Asked(D), suspect()
    assert placed(asked, context("first")) == D
    assert placed(asked, odd, now=NOW + 3.0 + CLEARED_S) == D


def test_a_worker_that_stands_still_is_avoided_while_there_is_another() -> None:
    asked = Asked(D, OTHER)
    asked.avoided = frozenset({D})
    assert [placed(asked, context(f"r{i}")) for i in range(3)] == [OTHER] * 3
    del asked.workers[OTHER]
    asked.fleet.ready[asked.fleet.slot_of(OTHER)] = False
    assert placed(asked, context("r3")) == D


def test_nobody_goes_back_to_who_failed_it_while_another_is_only_kept_for_a_moment() -> None:
    asked, given, odd = Asked(D, OTHER), context(), suspect()
    given.suspects.add(D)
    odd.suspects.add(D)
    assert placed(asked, odd) == OTHER
    refused = asked.place_request(given, now=NOW)
    assert isinstance(refused, PlacementRefusal) and refused.why == "held"


# -- sessions and lenders -----------------------------------------------------------------


def test_a_session_goes_back_to_its_worker_and_others_do_not_follow() -> None:
    asked = Asked(D, OTHER)
    first = placed(asked, context("first", session="s"))
    other = OTHER if first == D else D
    assert placed(asked, context("other")) == other
    for turn in range(3):
        assert placed(asked, context(f"turn {turn}", session="s")) == first


def test_nothing_is_pulled_from_a_worker_that_failed_the_request_or_is_draining() -> None:
    asked, given = Asked(D), context()
    asked.add(OTHER, kv_address="tcp://lender:1")
    asked.store(OTHER, prompt_hashes())
    speeds = Speeds(prefill_tokens_per_s=100.0, decode_step_s=0.001, transfer_bytes_per_s=1e9)
    for worker in asked.workers.values():
        worker.note_beat(replace(beat(running=9 * (worker.id == OTHER)), speeds=speeds), now=NOW)
    placement = asked.place_request(given, now=NOW)
    assert isinstance(placement, Placement) and placement.prefix_source is not None
    assert (placement.decode, placement.prefix_source.worker) == (D, OTHER)
    assert placement.prefix_source.num_tokens == 8
    given.suspects.add(OTHER)
    assert source_of(asked.place_request(given, now=NOW)) is None
    given.suspects.clear()
    asked.workers[OTHER].note_beat(replace(beat(), state="draining"), now=NOW)
    assert source_of(asked.place_request(given, now=NOW)) is None


def source_of(placement: Placement | PlacementRefusal) -> PrefixSource | None:
    assert isinstance(placement, Placement)
    return placement.prefix_source


# -- prefixes that mislead ----------------------------------------------------------------


def eight_workers() -> Asked:
    asked = Asked()
    for n in range(8):
        asked.add(WorkerId(f"decode-{n}"), num_blocks=1_000, max_context_tokens=4_000)
    return asked


def test_one_system_prompt_for_all_does_not_herd() -> None:
    """It is cached on one worker; a burst is spread nevertheless."""
    asked = eight_workers()
    asked.store(D, prompt_hashes())
    chosen = Counter(placed(asked, context(f"r{n}")) for n in range(80))
    assert len(chosen) == 8 and max(chosen.values()) <= 20


def test_workers_that_begin_cold_get_their_share() -> None:
    """Half have the prompt; the others were started just now."""
    asked = eight_workers()
    for name in list(asked.workers)[:4]:
        asked.store(name, prompt_hashes())
    chosen = Counter(placed(asked, context(f"r{n}")) for n in range(80))
    assert len(chosen) == 8
    assert min(chosen.values()) >= 4
