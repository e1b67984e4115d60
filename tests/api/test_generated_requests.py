"""Requests made from the document by schemathesis, right ones and wrong ones: none fails inside."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import APIOperation, BaseSchema, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from support.api import make_bench, with_stream_door

NUM_CASES = 500
"""In all, as `NUM_LONG_CASES` in the long tests."""
NUM_LONG_CASES = 2000
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> BaseSchema:
    app = with_stream_door(make_bench(tmp_path_factory.mktemp("checkpoint")).app())
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize(
    "num_cases", [NUM_CASES, pytest.param(NUM_LONG_CASES, marks=pytest.mark.long)]
)
def test_no_request_fails_inside(document: BaseSchema, num_cases: int) -> None:
    found = list(document.get_all_operations())
    operations = [result.ok() for result in found if isinstance(result, Ok)]
    assert len(operations) == len(found), "an operation that nothing can be made from"
    asking = [one for one in operations if one.body]
    few = len(operations) - len(asking)
    num_each = (num_cases - few) // (2 * len(asking)) + 1
    for operation in operations:
        for mode in MODES if operation.body else MODES[:1]:
            _ask(operation, mode, num_each if operation.body else 1)


def _ask(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, num_cases: int) -> None:
    @settings(
        max_examples=num_cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case[Any]) -> None:
        case.call_and_validate(checks=[not_a_server_error])

    ask()
