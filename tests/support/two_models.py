"""A bench that serves two models whose texts have nothing in common: other tokens, other template,
other defaults, other pooling."""

from dataclasses import replace
from pathlib import Path

from support.api import Bench, make_bench
from support.checkpoints import byte_fallback_tokenizer, write_checkpoint
from support.fake_models import text_of

from protocol.text.pooling_config import PoolingConfig
from protocol.text.sampling_defaults import SamplingDefaults
from protocol.text.tokenizer import Tokenizer

ONE, OTHER = "tiny", "org/other"
OTHER_REVISION = "fedcba9876543210"
OTHER_TEMPLATE = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


def two_models(path: Path) -> Bench:
    bench = make_bench(path / "one", max_context_tokens=512)
    add_text(bench, path / "other", model=OTHER, revision=OTHER_REVISION)
    return bench


def add_text(bench: Bench, path: Path, *, model: str, revision: str) -> None:
    """One more version, with the other text."""
    raw = byte_fallback_tokenizer()
    folder = write_checkpoint(path, raw=raw, eos_token="</s>", chat_template=OTHER_TEMPLATE)
    text = replace(
        text_of(Tokenizer.load(folder), model=model, revision=revision),
        sampling_defaults=SamplingDefaults(temperature=0.25),
        tokenizer_description={"of": model},
        pooling=PoolingConfig(kind="mean", is_normalised=False),
    )
    bench.models.texts.append(text)
    bench.dispatcher.tokenizers[text.version] = text.tokenizer
