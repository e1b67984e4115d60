"""A fleet whose workers are killed, stopped and restarted all the time, and clients that do not
notice."""

import asyncio
from pathlib import Path

import pytest
from support.chaos import ASKS, chaos_checkpoint, run_chaos

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.long]

SECONDS = 35.0
EVERY_S = 2.5


def test_no_client_of_two_routers_notices_that_workers_are_killed_stopped_and_restarted(
    tmp_path: Path,
) -> None:
    checkpoint = chaos_checkpoint(tmp_path)
    outcome, deeds = asyncio.run(run_chaos(checkpoint, seconds=SECONDS, every_s=EVERY_S))
    assert outcome.is_clean, "\n".join([str(outcome.errors), *outcome.told])
    assert set(outcome.kinds) == {ask.kind for ask in ASKS}
    assert sum(deeds.values()) >= 5
    assert outcome.figures["retries_lost"] + outcome.figures["retries_stalled"] > 0
