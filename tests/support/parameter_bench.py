"""The router's app with a model whose template knows tools, thinking and documents, and whose
tokeniser begins a text with a token of its own."""

from pathlib import Path

from support.api import Bench, make_bench
from support.checkpoints import byte_level_tokenizer
from tokenizers.processors import TemplateProcessing

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Answer by <tool_call>{}</tool_call>.<|im_end|>\n{% endif %}"
    "{% for document in documents or [] %}{{ document.text }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% else %}<think></think>{% endif %}{% endif %}"
)


def parameter_bench(path: Path) -> Bench:
    raw = byte_level_tokenizer()
    begin = "<|endoftext|>"
    raw.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, raw.token_to_id(begin))]
    )
    return make_bench(path, raw=raw, chat_template=TEMPLATE)
