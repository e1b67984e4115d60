"""What a router makes of a model's text files, by its rules."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint

from protocol.errors import SettingsError
from protocol.formats.choose import check_formats
from router.models.text_reading import ReadingRules, read_text


@pytest.mark.parametrize(
    ("content", "has_defaults", "temperature"),
    [({"temperature": 0.6}, True, 0.6), ({"temperature": 0.6}, False, 1.0),
     ({"temperature": "hot"}, True, 1.0)],
)  # fmt: skip
def test_the_models_sampling_defaults_hold_unless_left_out(
    content: dict[str, Any], has_defaults: bool, temperature: float, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    read = read_text(tmp_path, ReadingRules(has_sampling_defaults=has_defaults))
    assert read.sampling_defaults.temperature == temperature


def test_the_sampling_defaults_of_a_model_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    with caplog.at_level(logging.INFO, "baton.models"):
        read_text(tmp_path, ReadingRules())
    told = next(one.__dict__ for one in caplog.records if one.message == "sampling defaults")
    assert (told["temperature"], told["top_k"]) == (0.6, 20)


def test_a_format_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    assert read_text(tmp_path, ReadingRules()).formats.tool_format == "none"
    assert read_text(tmp_path, ReadingRules(tool_format="hermes")).formats.tool_format == "hermes"


def test_a_format_that_there_is_not_is_refused_without_any_model() -> None:
    check_formats(tools="hermes", reasoning="auto")
    check_formats(tools="response_template", reasoning="none")
    with pytest.raises(SettingsError, match="tool_format: 'tongs' is none of auto, none, "):
        check_formats(tools="tongs", reasoning="auto")
    with pytest.raises(SettingsError, match="reasoning_format: 'hermes' is none of"):
        check_formats(tools="auto", reasoning="hermes")
