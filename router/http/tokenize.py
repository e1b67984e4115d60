"""`/tokenize` and `/detokenize`: what the model would see of a text or a chat.

Run in a tokenising thread by `router.http.app`. Shapes are vLLM's, which benchmarks and evaluation
tools already speak.
"""

from typing import Any

from router.openai.errors import ApiError
from router.openai.prepare import check_model, check_token_ids
from router.openai.schemas import as_chat, parse_detokenize, parse_tokenize
from router.runtime import Runtime


def tokenize(runtime: Runtime, body: bytes, *, context: int) -> dict[str, Any]:
    fields = parse_tokenize(body)
    check_model(runtime, fields.model)
    tokenizer = runtime.tokenizer
    if fields.prompt is not None:
        ids = tokenizer.encode(fields.prompt, add_special_tokens=fields.add_special_tokens)
    else:
        template = tokenizer.chat_template
        knows_developer = template is not None and template.knows_developer
        chat = as_chat(fields.messages or [], knows_developer=knows_developer)
        try:
            ids = tokenizer.encode_chat(chat, add_generation_prompt=fields.add_generation_prompt)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from error
    return {"count": len(ids), "max_model_len": context, "tokens": ids}


def detokenize(runtime: Runtime, body: bytes) -> dict[str, Any]:
    fields = parse_detokenize(body)
    check_model(runtime, fields.model)
    check_token_ids(runtime.tokenizer, fields.tokens, field="tokens")
    return {"prompt": runtime.tokenizer.decode(fields.tokens, skip_special_tokens=False)}
