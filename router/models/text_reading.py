"""From a folder of text files to what the HTTP surface needs of them."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from protocol.formats.choose import choose_formats
from protocol.formats.formats import Formats
from protocol.messages import ServedVersion
from protocol.text.description import describe_tokenizer
from protocol.text.pooling_config import PoolingConfig, read_pooling_config
from protocol.text.sampling_defaults import SamplingDefaults, read_sampling_defaults
from protocol.text.tokenizer import SpecialsInChats, Tokenizer
from router.models.model_text import ModelText

log = logging.getLogger("baton.models")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingRules:
    """How this router reads every text; as of `router.settings`."""

    tool_format: str = "auto"
    reasoning_format: str = "auto"
    has_sampling_defaults: bool = True
    """Those of the checkpoint's generation_config.json hold."""
    specials_in_chats: SpecialsInChats = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadText:
    """What is the same for all versions with the same text files."""

    tokenizer: Tokenizer
    formats: Formats
    sampling_defaults: SamplingDefaults
    tokenizer_description: Mapping[str, Any] = field(repr=False)
    pooling: PoolingConfig

    def of_version(self, version: ServedVersion) -> ModelText:
        return ModelText(
            version=version,
            tokenizer=self.tokenizer,
            formats=self.formats,
            sampling_defaults=self.sampling_defaults,
            tokenizer_description=self.tokenizer_description,
            pooling=self.pooling,
        )


def read_text(folder: Path, rules: ReadingRules) -> ReadText:
    """Blocks, for a second where the vocabulary is large. Raises CheckpointError, and SettingsError
    where `rules` name a format that there is not."""
    tokenizer = Tokenizer.load(folder, specials_in_chats=rules.specials_in_chats)
    formats = choose_formats(tokenizer, tools=rules.tool_format, reasoning=rules.reasoning_format)
    names = {"tool_format": formats.tool_format, "reasoning_format": formats.reasoning_format}
    log.info("formats", extra=names)
    defaults = SamplingDefaults()
    if rules.has_sampling_defaults:
        defaults = read_sampling_defaults(folder)
        log.info("sampling defaults", extra=asdict(defaults))
    return ReadText(
        tokenizer=tokenizer,
        formats=formats,
        sampling_defaults=defaults,
        tokenizer_description=describe_tokenizer(folder),
        pooling=read_pooling_config(folder),
    )
