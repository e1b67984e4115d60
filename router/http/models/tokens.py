"""`/tokenize` and `/detokenize`: what the model would see of a text or a chat.

May take a while: meant for a tokenising thread. Shapes are vLLM's, which benchmarks and
evaluation tools already speak.
"""

from typing import Any

from router.api.model_choice import Choose
from router.api.parsing import parse_body
from router.openai.chat import chat_of
from router.openai.encode import check_token_ids, encode_chat, encode_text
from router.openai.schemas import DetokenizeRequest, TokenizeRequest


def tokenize(choose: Choose, body: bytes) -> dict[str, Any]:
    fields = parse_body(TokenizeRequest, body)
    chosen = choose(fields.model)
    tokenizer, context = chosen.text.tokenizer, chosen.context_tokens
    if fields.prompt is not None:
        special = fields.add_special_tokens is not False
        ids = encode_text(
            tokenizer, fields.prompt, add_special_tokens=special, context=context, field="prompt"
        )
    else:
        ids = encode_chat(tokenizer, chat_of(fields), context=context)
    return {"count": len(ids), "max_model_len": context, "tokens": ids}


def detokenize(choose: Choose, body: bytes) -> dict[str, Any]:
    fields = parse_body(DetokenizeRequest, body)
    tokenizer = choose(fields.model).text.tokenizer
    check_token_ids(tokenizer, fields.tokens, field="tokens")
    return {"prompt": tokenizer.decode(fields.tokens, skip_special_tokens=False)}
