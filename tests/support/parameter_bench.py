"""The router's app with a model whose template knows tools, thinking and documents, and whose
tokeniser puts a token of its own before texts."""

from pathlib import Path

import httpx
from support.api import Bench, make_bench, with_stream_door
from support.checkpoints import byte_level_tokenizer
from tokenizers import processors

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Answer by <tool_call>{}</tool_call>.<|im_end|>\n{% endif %}"
    "{% for document in documents or [] %}{{ document.text }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% else %}<think></think>{% endif %}{% endif %}"
)


class ParameterBench:
    """One app for many requests."""

    def __init__(self, path: Path) -> None:
        self.bench = _bench(path)
        app = with_stream_door(self.bench.app())
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self._transport, base_url="http://router")


def _bench(path: Path) -> Bench:
    raw = byte_level_tokenizer()
    first = "<|endoftext|>"
    raw.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, raw.token_to_id(first))]
    )
    return make_bench(path, raw=raw, chat_template=TEMPLATE)
