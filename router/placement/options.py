"""The cheapest ways to serve one request on a fleet, one of each kind.

The C kernel (options.c) answers where there is one, else its twin in numpy, the same and slower.
"""

from router.placement import cost
from router.placement.cost import Breakdown
from router.placement.fleet import Fleet
from router.placement.kernel import OptionFields, QueryFields, kernel
from router.placement.option import FIRST_TOKENS, Option, OptionQuery, Options
from router.placement.twin import find_options_twin


def find_options(fleet: Fleet, question: OptionQuery) -> Options:
    found = kernel()
    if found is None:
        return find_options_twin(fleet, question)
    demand = question.demand
    asked = QueryFields(
        fleet.rows.ctypes.data,
        question.open.ctypes.data,
        question.depths.ctypes.data,
        question.held.ctypes.data,
        fleet.num_slots,
        len(question.depths),
        len(fleet.compats),
        demand.num_tokens,
        demand.num_tokens + demand.max_output_tokens,
        demand.num_tokens + FIRST_TOKENS,
        demand.expected_output,
        demand.num_reusable,
        question.now,
        cost.MAX_AGE_S,
        cost.COMING_STREAMS,
        cost.STREAM_PART,
        question.inter_token_target_s,
        question.worker_queue_s,
        *question.kept,
    )
    best = (OptionFields * 6)()
    flags = found(asked, best)
    if flags < 0:
        raise MemoryError("no memory for the options of a placement")
    pair, alone, calm, kept_pair, kept_alone, kept_calm = best
    cheapest_alone = _option(alone)
    return Options(
        has_decode=bool(flags & 1),
        has_able=bool(flags & 2),
        has_free_pair=bool(flags & 4),
        has_free_alone=bool(flags & 8),
        has_free_calm=bool(flags & 16),
        pair=_option(pair),
        alone=cheapest_alone,
        calm=cheapest_alone if calm.decode == alone.decode else _option(calm),
        kept_pair=_option(kept_pair),
        kept_alone=_option(kept_alone),
        kept_calm=_option(kept_calm),
    )


def _option(found: OptionFields) -> Option | None:
    if found.decode < 0:
        return None
    return Option(
        decode=found.decode,
        prefill=found.prefill,
        source=found.source,
        num_uncached=int(found.num_uncached),
        num_pulled=int(found.num_pulled),
        terms=Breakdown(*found.terms),
    )
