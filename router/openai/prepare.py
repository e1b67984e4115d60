"""A request body to generations ready for dispatch: model, prompt, context and token ids checked.

Thread-safe, because it parses and encodes megabytes: no work for the event loop. Every mistake of
the client ends here, as an `ApiError` naming the field.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from protocol.ids import RequestId
from protocol.messages import Sampling
from protocol.text.tokenizer import Tokenizer
from router.openai.errors import ApiError, bad_field
from router.openai.parsing import parse_body
from router.openai.schemas import MAX_SEED, ChatRequest, CompletionRequest, Message, SamplingFields
from router.requests.events import GenerationRequest
from router.runtime import Runtime

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for `/v1/completions`."""
Kind = Literal["chat", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One HTTP request: its choices and how to show them. Choices are prompt by prompt."""

    kind: Kind
    id: str
    """Of the answer's object, e.g. `chatcmpl-...`."""
    created: int
    """Unix seconds."""
    model: str
    stream: bool
    include_usage: bool
    n: int
    requests: tuple[GenerationRequest, ...]
    prompt_tokens: int
    """Each prompt once, however many choices it has."""
    echoes: tuple[str, ...]
    """Text to show before each choice; "" unless asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    field: str
    """As the client named it, for messages."""
    token_ids: tuple[int, ...]
    echo: str = ""


def prepare_chat(runtime: Runtime, body: bytes, request: RequestId, context: int) -> Generation:
    """`context` is what `context_tokens` said on the event loop."""
    fields = parse_body(ChatRequest, body)
    check_model(runtime, fields.model)
    _check_num_choices(runtime, fields, num_prompts=1)
    prompt = Prompt(field="messages", token_ids=tuple(_encode_chat(runtime.tokenizer, fields)))
    max_tokens = fields.output_limit or max(1, context - len(prompt.token_ids))
    _check_sizes(runtime, fields, (prompt,), max_tokens=max_tokens, context=context)
    return _generation("chat", runtime, fields, (prompt,), max_tokens=max_tokens, request=request)


def prepare_completion(
    runtime: Runtime, body: bytes, request: RequestId, context: int
) -> Generation:
    """`context` is what `context_tokens` said on the event loop."""
    fields = parse_body(CompletionRequest, body)
    check_model(runtime, fields.model)
    _check_num_choices(runtime, fields, num_prompts=len(fields.prompt))
    prompts = _encode_prompts(runtime.tokenizer, fields)
    room = context - max(len(prompt.token_ids) for prompt in prompts)
    max_tokens = fields.output_limit or max(1, min(COMPLETION_MAX_TOKENS, room))
    _check_sizes(runtime, fields, prompts, max_tokens=max_tokens, context=context)
    return _generation("text", runtime, fields, prompts, max_tokens=max_tokens, request=request)


def context_tokens(runtime: Runtime) -> int:
    """Prompt and output together, at most. For the event loop, where workers come and go."""
    of_workers = runtime.cluster.max_context_tokens()
    of_model = runtime.tokenizer.max_context_tokens
    return of_model if of_workers is None else min(of_model, of_workers)


def check_model(runtime: Runtime, model: str | None) -> None:
    if model is not None and model != runtime.model:
        message = f"model: {model[:200]!r} does not exist here; {runtime.model!r} does"
        raise ApiError(404, message, param="model", code="model_not_found")


def encode_messages(
    tokenizer: Tokenizer, messages: Sequence[Message], /, **variables: Any
) -> list[int]:
    """Token ids of a chat by the model's template, which sees `variables`. Raises ApiError 400."""
    template = tokenizer.chat_template
    knows_developer = template is not None and template.knows_developer
    shown = [message.as_shown(knows_developer=knows_developer) for message in messages]
    try:
        return tokenizer.encode_chat(shown, **variables)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from error


def _encode_chat(tokenizer: Tokenizer, fields: ChatRequest) -> list[int]:
    variables = fields.chat_template_kwargs
    clash = {"messages", "add_generation_prompt"} & variables.keys()
    if clash:
        raise bad_field("chat_template_kwargs", f"must not set {min(clash)}")
    return encode_messages(
        tokenizer, fields.messages, add_generation_prompt=fields.add_generation_prompt, **variables
    )


def _encode_prompts(tokenizer: Tokenizer, fields: CompletionRequest) -> tuple[Prompt, ...]:
    prompts = []
    for index, given in enumerate(fields.prompt):
        field = "prompt" if len(fields.prompt) == 1 else f"prompt[{index}]"
        if isinstance(given, str):
            token_ids = tokenizer.encode(given, add_special_tokens=fields.add_special_tokens)
            text = given
        else:
            check_token_ids(tokenizer, given, field=field)
            token_ids = list(given)
            text = tokenizer.decode(given) if fields.echo else ""
        echo = text if fields.echo else ""
        prompts.append(Prompt(field=field, token_ids=tuple(token_ids), echo=echo))
    return tuple(prompts)


def check_token_ids(tokenizer: Tokenizer, token_ids: Sequence[int], *, field: str) -> None:
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < tokenizer.vocab_size:
            rule = f"token ids are 0 to {tokenizer.vocab_size - 1}; got {token_id}"
            raise bad_field(f"{field}[{index}]", rule)


def _generation(
    kind: Kind,
    runtime: Runtime,
    fields: ChatRequest | CompletionRequest,
    prompts: tuple[Prompt, ...],
    *,
    max_tokens: int,
    request: RequestId,
) -> Generation:
    owners = [prompt for prompt in prompts for _ in range(fields.n)]
    seed = secrets.randbits(63) if fields.seed is None else fields.seed % MAX_SEED
    requests = tuple(
        GenerationRequest(
            id=request if len(owners) == 1 else RequestId(f"{request}.{index}"),
            token_ids=prompt.token_ids,
            sampling=_sampling(fields, max_tokens=max_tokens, seed=(seed + index) % MAX_SEED),
            salt=fields.cache_salt,
            deadline_s=runtime.limits.request_timeout_s,
        )
        for index, prompt in enumerate(owners)
    )
    return Generation(
        kind=kind,
        id=f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{request}",
        created=int(time.time()),
        model=runtime.model,
        stream=fields.stream,
        include_usage=fields.include_usage,
        n=fields.n,
        requests=requests,
        prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts),
        echoes=tuple(prompt.echo for prompt in owners),
    )


def _check_num_choices(runtime: Runtime, fields: SamplingFields, *, num_prompts: int) -> None:
    most = runtime.limits.max_choices
    if num_prompts * fields.n > most:
        param = "prompt" if num_prompts > most else "n"
        raise bad_field(param, f"at most {most} prompts times n; got {num_prompts} x {fields.n}")


def _check_sizes(
    runtime: Runtime,
    fields: SamplingFields,
    prompts: tuple[Prompt, ...],
    *,
    max_tokens: int,
    context: int,
) -> None:
    vocab_size = runtime.tokenizer.vocab_size
    for prompt in prompts:
        num_tokens = len(prompt.token_ids)
        if num_tokens == 0:
            raise bad_field(prompt.field, "has no tokens; at least one is needed")
        if num_tokens + max_tokens > context:
            message = (
                f"{prompt.field}: the context is {context} tokens; the prompt has {num_tokens}"
                f" and max_tokens is {max_tokens}: {num_tokens + max_tokens} in all"
            )
            raise ApiError(400, message, param=prompt.field, code="context_length_exceeded")
    if fields.min_tokens > max_tokens:
        raise bad_field("min_tokens", f"at most max_tokens, {max_tokens}; got {fields.min_tokens}")
    check_token_ids(runtime.tokenizer, fields.stop_token_ids, field="stop_token_ids")
    for token_id, _ in fields.logit_bias:
        if token_id >= vocab_size:
            raise bad_field("logit_bias", f"token ids are 0 to {vocab_size - 1}; got {token_id}")


def _sampling(fields: ChatRequest | CompletionRequest, *, max_tokens: int, seed: int) -> Sampling:
    return Sampling(
        seed=seed,
        max_tokens=max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=max(0, fields.top_k),
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias=fields.logit_bias,
        num_logprobs=fields.num_logprobs,
        min_tokens=fields.min_tokens,
        ignore_eos=fields.ignore_eos,
        stop=fields.stop,
        stop_token_ids=tuple(fields.stop_token_ids),
        include_stop=fields.include_stop_str_in_output,
        skip_special_tokens=fields.skip_special_tokens,
    )
