"""`/v1/embeddings`: a request body to prompts that are computed and pooled, nothing generated.

Thread-safe, as `router.openai.prepare`. What a vector is worth is the checkpoint's affair: any
decoder has one.
"""

import time
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from protocol.ids import RequestId
from protocol.messages import Sampling
from protocol.readings import PoolPrompt
from protocol.text.pooling_config import PoolingConfig
from router.api.errors import bad_field, context_exceeded, unsupported_field
from router.api.generation import Generation, ShownVectors
from router.api.model_choice import Choose
from router.api.parsing import Reader, Schema, Unsupported, parse_body
from router.models.model_text import ChosenModel
from router.openai.encode import check_token_ids, encode_text
from router.openai.prompts import Prompt, read_prompts
from router.openai.schemas import MAX_COPIED_TOKENS, Name
from router.openai.unsupported import EMBEDDING_UNSUPPORTED
from router.requests.events import GenerationRequest
from router.runtime import Runtime

MAX_INPUTS = 2048
"""OpenAI's; its clients send as many as 1,000 at once by themselves."""
_COMPUTED = Sampling(seed=0, max_tokens=0)


def _read_inputs(raw: bytes) -> tuple[Prompt, ...]:
    return read_prompts(raw, most=MAX_INPUTS)


class EmbeddingRequest(Schema, frozen=True, kw_only=True):
    unsupported: ClassVar[Unsupported] = EMBEDDING_UNSUPPORTED
    large: ClassVar[frozenset[str]] = frozenset({"input"})
    readers: ClassVar[dict[str, Reader]] = {"input": _read_inputs}
    model: str | None = None
    input: tuple[Prompt, ...]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    add_special_tokens: bool = True
    """vLLM's, as the next: of inputs that are texts."""
    cache_salt: Annotated[str, Meta(max_length=1024)] = ""
    user: Name = ""
    request_id: Name = ""


def prepare_embeddings(
    runtime: Runtime, body: bytes, request: RequestId, choose: Choose
) -> Generation:
    """Raises ApiError, and what `choose` does."""
    fields = parse_body(EmbeddingRequest, body)
    chosen = choose(fields.model)
    text, pooling = chosen.text, chosen.text.pooling
    if pooling.refusal:
        raise unsupported_field("model", f"an embedding by {pooling.refusal} is")
    _check_dimensions(fields, pooling)
    prompts = _prompts(chosen, fields)
    requests = tuple(
        GenerationRequest(
            id=request if len(prompts) == 1 else RequestId(f"{request}.{index}"),
            token_ids=token_ids,
            sampling=_COMPUTED,
            salt=fields.cache_salt,
            reading=PoolPrompt(kind=pooling.kind),
            deadline_s=runtime.limits.request_timeout_s,
            version=text.version,
        )
        for index, token_ids in enumerate(prompts)
    )
    return Generation(
        kind="text",
        id=f"embd-{request}",
        created=int(time.time()),
        chosen=chosen,
        stream=False,
        include_usage=False,
        continuous_usage=False,
        n=1,
        requests=requests,
        prompt_tokens=sum(map(len, prompts)),
        echoes=("",) * len(requests),
        vectors=ShownVectors(
            as_base64=fields.encoding_format == "base64",
            is_normalised=pooling.is_normalised or fields.dimensions is not None,
            num_dimensions=fields.dimensions,
        ),
        max_at_once=min(runtime.limits.max_choices, runtime.max_in_flight_of_one),
    )


def _check_dimensions(fields: EmbeddingRequest, pooling: PoolingConfig) -> None:
    """A vector cut short is one only where the model was trained for it."""
    asked, allowed = fields.dimensions, pooling.dimensions
    if asked is None:
        return
    if not pooling.is_matryoshka:
        raise unsupported_field("dimensions", f"{asked} of a vector of this model's are")
    if allowed and asked not in allowed:
        raise bad_field("dimensions", f"of this model {', '.join(map(str, sorted(allowed)))}")


def _prompts(chosen: ChosenModel, fields: EmbeddingRequest) -> list[tuple[int, ...]]:
    tokenizer, context = chosen.text.tokenizer, chosen.context_tokens
    prompts, num_all = list[tuple[int, ...]](), 0
    for index, given in enumerate(fields.input):
        field = "input" if len(fields.input) == 1 else f"input[{index}]"
        if isinstance(given, str):
            special = fields.add_special_tokens
            ids = encode_text(
                tokenizer, given, add_special_tokens=special, context=context, field=field
            )
        else:
            check_token_ids(tokenizer, given, field=field)
            ids = given
        if not ids:
            raise bad_field(field, "has no tokens; at least one is needed")
        if len(ids) > context:
            raise context_exceeded(field, context=context, num_tokens=len(ids), max_tokens=0)
        num_all += len(ids)
        if num_all > max(context, MAX_COPIED_TOKENS):
            raise bad_field("input", f"at most {MAX_COPIED_TOKENS} tokens in all")
        prompts.append(tuple(ids))
    return prompts
