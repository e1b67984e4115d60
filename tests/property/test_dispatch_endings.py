"""Whatever workers do, a request's tokens are right and its ending is one, and only one who was
given to two workers just before they died is told that it ends workers.

Random plans (die, refuse, fail, skip, repeat, speak of the past) for two workers of each role,
supervised, with several requests at once, some of whose clients leave. The two may be of different
versions, with equal KV: a request of one of them has no word with the other's.
"""

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.eventually import soon
from support.fake_cluster import (
    APART,
    FakeCluster,
    Heard,
    collect,
    fake_cluster,
    request,
    scores_heard,
    tokens_of,
)
from support.fake_worker import Act, expected, scores_of

from protocol.errors import CapacityError
from protocol.messages import ServedVersion, Token
from protocol.readings import ScorePrompt
from router.placement.place import DEFAULT_RULES
from router.requests.dispatch import DispatchLimits
from router.requests.events import Ended, PoisonRequest, Read, Route, VersionGone

NAMES = ("prefill-0", "prefill-1", "decode-0", "decode-1")
acts = st.builds(
    Act,
    st.sampled_from(["die", "refuse", "fail", "repeat", "skip", "stale", "break"]),
    st.integers(min_value=0, max_value=8),
)
plans = st.fixed_dictionaries({name: st.lists(acts, max_size=3) for name in NAMES})
clients = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=9),  # max_tokens
        st.one_of(st.none(), st.integers(min_value=0, max_value=9)),  # leaves after so many events
        st.booleans(),  # asks for the prompt's scores
        st.sampled_from([None, "old", "new"]),  # the version that it is for
    ),
    min_size=1,
    max_size=3,
)


class Left(Exception):
    """The client has heard enough."""


class Leaving(Heard):
    """Leaves when it has been told more than `after` things; None: never."""

    def __init__(self, after: int | None) -> None:
        super().__init__()
        self._after = after

    def placed(self, route: Route) -> None:
        super().placed(route)
        self._leave()

    def read(self, read: Read) -> None:
        super().read(read)
        self._leave()

    def token(self, token: Token) -> None:
        super().token(token)
        self._leave()

    def _leave(self) -> None:
        if self._after is not None and len(self.told) > self._after:
            raise Left


async def _client(
    cluster: FakeCluster,
    number: int,
    *,
    max_tokens: int,
    leaves_after: int | None,
    scored: bool,
    version: ServedVersion | None,
    may_be_poison: bool,
) -> None:
    reading, prompt = (ScorePrompt() if scored else None), (number, 5, 6, 7, 8)
    asked = request(
        max_tokens=max_tokens, name=f"r{number}", prompt=prompt, reading=reading, version=version
    )
    heard = Leaving(leaves_after)
    try:
        await collect(cluster, asked, heard)
    except PoisonRequest:
        assert may_be_poison
        return
    except VersionGone:
        assert version is not None and not heard.told, "it may begin anew elsewhere"
        return
    except CapacityError:
        assert not heard.told, "refused after the first token"
        return
    except Left:
        pass
    events = heard.told
    due = expected(asked.token_ids, asked.sampling)
    if scored:
        scored_so, due_scores = scores_heard(events), scores_of(prompt)
        assert scored_so == due_scores[: len(scored_so)]
        assert len(scored_so) == len(due_scores) or leaves_after is not None
    if leaves_after is None:
        assert tokens_of(events) == due
    else:
        assert [token.token_id for token in heard.tokens] == due[: len(heard.tokens)]
        assert sum(isinstance(event, Ended) for event in events[:-1]) == 0


async def _announce(cluster: FakeCluster) -> None:
    """Again and again, as Redis does: who said that its engine is broken and lives is met anew."""
    while True:
        cluster.announce()
        await asyncio.sleep(0.05)


@given(plans=plans, clients=clients, apart=st.booleans())
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_any_script_of_worker_behaviour_gives_the_right_tokens_and_one_ending(
    plans: dict[str, list[Act]],
    clients: list[tuple[int, int | None, bool, str | None]],
    apart: bool,
) -> None:
    async def test() -> None:
        deaths = sum(act.deed in ("die", "break") for plan in plans.values() for act in plan)
        limits = DispatchLimits(
            max_attempts=20, full_pause_s=0.01, rules=APART if apart else DEFAULT_RULES
        )
        async with fake_cluster(
            prefill=2,
            decode=2,
            plans=plans,
            limits=limits,
            supervised=True,
            revisions=("old", "new"),
        ) as cluster:
            here = [cluster.workers[name].registration.version for name in NAMES[2:]]
            versions = {version.revision: version for version in here}
            announcing = asyncio.create_task(_announce(cluster), name="announce")
            async with asyncio.TaskGroup() as tasks:
                for number, (max_tokens, leaves_after, scored, of) in enumerate(clients):
                    running = _client(
                        cluster,
                        number,
                        max_tokens=max_tokens,
                        leaves_after=leaves_after,
                        scored=scored,
                        version=None if of is None else versions[of],
                        may_be_poison=deaths > 1,
                    )
                    tasks.create_task(running, name=f"client {number}")
            await cluster.until_idle()
            announcing.cancel()
            await soon(lambda: not cluster.registry.num_receivers)
            for worker in cluster.ever:
                asked = [
                    int(message.request[1 : message.request.index("~")]) for message in worker.seen
                ]
                assert {clients[number][3] for number in asked} <= {
                    None,
                    worker.registration.revision,
                }

    asyncio.run(test())
