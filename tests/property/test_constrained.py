"""Random lives of sequences held to grammars: whatever befalls them, the same tokens, and legal.

A pool so small that they are preempted, steps that fail, and moves to another engine in the middle.
"""

import random
from collections.abc import Sequence

import pytest
from support.constrained import (
    SCHEMA,
    ConstrainedEngine,
    accepts,
    constrained_engine,
    held_to,
    json_grammar,
    lark,
)
from support.eventually import eventually
from support.fake_runner import FakeStep

from engine.batch import Chunk
from engine.sequence import Complete
from protocol.messages import Grammar, Sampling

GRAMMARS: tuple[Grammar, ...] = (
    json_grammar(SCHEMA),
    json_grammar({"type": "array", "items": {"type": "number"}, "maxItems": 12}),
    lark('start: ("ab" | "b" /[cd]{2,5}/){3,9} "."'),
    lark("start: /[a-z ]{5,60}/"),
)
NUM_SEEDS = 3


def rules() -> dict[str, Sampling]:
    return {
        f"{number}-{seed}": held_to(grammar, seed=seed, max_tokens=60)
        for number, grammar in enumerate(GRAMMARS)
        for seed in range(NUM_SEEDS)
    }


def lived(run: ConstrainedEngine, rules: dict[str, Sampling]) -> dict[str, list[int]]:
    """All at once, to their ends."""
    for name, rule in rules.items():
        run.submit(name, rule)
    for name in rules:
        assert isinstance(run.ending(name), Complete)
    return {name: run.tokens(name) for name in rules}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, list[int]]:
    with constrained_engine() as run:
        return lived(run, rules())


def test_undisturbed_outputs_are_texts_of_their_grammars(
    undisturbed: dict[str, list[int]],
) -> None:
    for name, rule in rules().items():
        assert rule.grammar is not None and undisturbed[name]
        assert accepts(rule.grammar, undisturbed[name])


@pytest.mark.parametrize("depth", [1, 2])
def test_preempted_and_failing_steps_change_no_token(
    undisturbed: dict[str, list[int]], depth: int
) -> None:
    with constrained_engine(num_blocks=26, depth=depth) as run:
        chance = random.Random(depth)
        launch = run.runner.launch

        def failing(chunks: Sequence[Chunk]) -> FakeStep:
            # Else as many run together as are compiled by chance.
            eventually(lambda: run.grammars.num_told == len(rules()))
            if len(chunks) > 1:  # who fails alone is to blame
                run.runner.fail_next += chance.random() < 0.03
                run.runner.fail_tokens += chance.random() < 0.03
            return launch(chunks)

        run.runner.launch = failing  # type: ignore[method-assign]
        assert lived(run, rules()) == undisturbed
        assert run.engine.stats().num_preempted


def test_a_move_to_another_engine_changes_no_token(undisturbed: dict[str, list[int]]) -> None:
    chance = random.Random(3)
    with constrained_engine() as run:
        for name, rule in rules().items():
            given = undisturbed[name][: chance.randrange(len(undisturbed[name]) + 1)]
            run.submit(name, rule, generated=given)
            assert isinstance(run.ending(name), Complete)
            assert given + run.tokens(name) == undisturbed[name]
