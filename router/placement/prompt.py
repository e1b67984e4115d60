"""Where a prompt goes that is read and no more: to one worker."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protocol.messages import ServedVersion
from router.placement import cost
from router.placement.cost import Demand
from router.placement.fleet import Fleet
from router.placement.place import Placement, PlacementRefusal, open_workers, refuse
from router.placement.reason import printable
from router.placement.twin import cached_tokens


def place_prompt(
    fleet: Fleet,
    demand: Demand,
    *,
    depths: NDArray[np.uint32],
    now: float,
    version: ServedVersion | None = None,
    shut: Iterable[int] = (),
) -> Placement | PlacementRefusal:
    """The one worker of `version`, None: of any, named as `decode`, that reads a prompt and
    generates nothing, or one token: a prefill worker if any can, the first to be done, ties by
    name."""
    fleet.guess_speeds(now=now)
    ready = open_workers(fleet, version, shut)
    rows = fleet.rows[: fleet.num_slots]
    total = demand.num_tokens + demand.max_output_tokens
    able = (ready[: fleet.num_slots] != 0) & (total <= rows["longest_tokens"])
    if not able.any():
        return refuse(fleet, ready, demand, only_decode=False)
    near = able & (rows["is_decode"] == 0)
    slots = np.flatnonzero(near if near.any() else able)
    cached = cached_tokens(rows, depths, demand)[slots]
    start = cost.start(rows[slots], demand, num_cached=cached, lent=0.0, pull_s=0.0, now=now)
    done_s = start.queue_s + start.compute_s
    best = int(np.lexsort((rows["rank"][slots], done_s))[0])
    worker, uncached = fleet.name_of(int(slots[best])), int(start.num_uncached[best])
    reason = (
        f"{worker}; uncached {uncached} of {demand.num_tokens} tokens; one worker reads the "
        f"prompt; done in {done_s[best]:.3f} s"
    )
    return Placement(
        prefill=None,
        decode=worker,
        reason=printable(reason),
        cost_s=float(done_s[best]),
        num_uncached_tokens=uncached,
        prefill_s=float(start.compute_s[best]),
    )
