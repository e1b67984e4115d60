"""Whatever of a schema by chance is not refused is kept: walks through its grammar fit it."""

import json
from random import Random

import pytest
from support.json_schemas import Case, Walker
from support.random_schemas import random_schema

from protocol.text.structured.grammars import JsonStyle, json_grammar
from protocol.text.structured.limits import SchemaError


def check(seeds: range) -> None:
    kept = 0
    for seed in seeds:
        schema = random_schema(Random(seed))
        try:
            grammar = json_grammar(schema, JsonStyle(closed=seed % 2 == 0))
        except SchemaError:
            continue
        case = Case(name=str(seed), schema=schema, valid=[], invalid=[])
        walks = [Walker(grammar).walk(number, max_tokens=120) for number in range(3)]
        for text in [walk.text for walk in walks if walk.stopped]:
            assert case.is_valid(json.loads(text)), (text, schema)
        kept += any(walk.stopped for walk in walks)
    assert kept > len(seeds) / 3


def test_walks_through_schemas_by_chance_fit_them() -> None:
    check(range(60))


@pytest.mark.long
def test_walks_through_many_schemas_by_chance_fit_them() -> None:
    check(range(100, 1100))
