"""A request body to generations ready for dispatch: model, prompt, context and token ids checked.

Thread-safe, because it parses and encodes megabytes: no work for the event loop. Every mistake of
the client ends here, as an `ApiError` naming the field.
"""

import secrets
import time
from dataclasses import dataclass
from typing import Literal, TypeVar

from protocol.ids import RequestId
from protocol.messages import Sampling
from protocol.text.sampling_defaults import SamplingDefaults
from router.openai.encode import Prompt, check_token_ids, encode_messages, encode_prompts
from router.openai.errors import ApiError, bad_field, context_exceeded
from router.openai.explain import shown
from router.openai.parsing import parse_body
from router.openai.schemas import (
    MAX_COPIED_TOKENS,
    MAX_SEED,
    ChatRequest,
    CompletionRequest,
    SamplingFields,
)
from router.requests.events import GenerationRequest
from router.runtime import Runtime

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for `/v1/completions`."""
MAX_ALTERNATIVES = 1 << 20
"""Of an answer that is not streamed, its tokens counted too: 64 to 128 MB of JSON."""
T = TypeVar("T")
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
    continuous_usage: bool
    """In every chunk, not only in the last."""
    n: int
    requests: tuple[GenerationRequest, ...]
    prompt_tokens: int
    """Each prompt once, however many choices it has."""
    echoes: tuple[str, ...]
    """Text to show before each choice; "" unless asked for."""


def prepare_chat(runtime: Runtime, body: bytes, request: RequestId, context: int) -> Generation:
    """`context` is what `context_tokens` said on the event loop."""
    fields = parse_body(ChatRequest, body)
    check_model(runtime, fields.model)
    _check_num_choices(runtime, fields, num_prompts=1)
    token_ids = encode_messages(
        runtime.tokenizer,
        fields.messages,
        context=context,
        kwargs=fields.chat_template_kwargs,
        add_generation_prompt=fields.add_generation_prompt,
    )
    prompt = Prompt(field="messages", token_ids=tuple(token_ids))
    room = max(1, context - len(prompt.token_ids))
    max_tokens = fields.output_limit or min(runtime.sampling_defaults.max_tokens or room, room)
    _check_sizes(runtime, fields, (prompt,), max_tokens=max_tokens, context=context)
    return _generation("chat", runtime, fields, (prompt,), max_tokens=max_tokens, request=request)


def prepare_completion(
    runtime: Runtime, body: bytes, request: RequestId, context: int
) -> Generation:
    """`context` is what `context_tokens` said on the event loop."""
    fields = parse_body(CompletionRequest, body)
    check_model(runtime, fields.model)
    _check_num_choices(runtime, fields, num_prompts=len(fields.prompt))
    prompts = encode_prompts(runtime.tokenizer, fields, context=context)
    room = context - max(len(prompt.token_ids) for prompt in prompts)
    max_tokens = fields.output_limit or max(1, min(COMPLETION_MAX_TOKENS, room))
    _check_sizes(runtime, fields, prompts, max_tokens=max_tokens, context=context)
    return _generation("text", runtime, fields, prompts, max_tokens=max_tokens, request=request)


def context_tokens(runtime: Runtime) -> int:
    """Prompt and output together, at most. For the event loop, where workers come and go."""
    of_workers = runtime.cluster.max_context_tokens()
    of_model = runtime.tokenizer.max_context_tokens
    return of_model if of_workers is None else min(of_model, of_workers)


def answer_too_large(kind: Kind) -> ApiError:
    """400 for what is collected beyond `MAX_ALTERNATIVES`, known before or after."""
    logprobs = "(1 + top_logprobs)" if kind == "chat" else "(1 + logprobs)"
    rule = f"at most {MAX_ALTERNATIVES} without `stream`; set `stream`, or lower one of the three"
    return bad_field("max_tokens", f"choices x max_tokens x {logprobs}: {rule}")


def check_model(runtime: Runtime, model: str | None) -> None:
    if model is not None and model != runtime.model:
        message = f"The model `{shown(model)}` does not exist here; `{runtime.model}` does."
        raise ApiError(404, message, param="model", code="model_not_found")


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
            sampling=_sampling(
                fields,
                runtime.sampling_defaults,
                max_tokens=max_tokens,
                seed=(seed + index) % MAX_SEED,
            ),
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
        continuous_usage=fields.continuous_usage,
        n=fields.n,
        requests=requests,
        prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts),
        echoes=tuple(prompt.echo for prompt in owners),
    )


def _check_num_choices(runtime: Runtime, fields: SamplingFields, *, num_prompts: int) -> None:
    most = min(runtime.limits.max_choices, runtime.max_in_flight_of_one)
    if num_prompts * fields.n > most:
        param = "prompt" if num_prompts > most else "n"
        raise bad_field(param, f"at most {most} prompts times n; got {num_prompts} x {fields.n}")


def _check_sizes(
    runtime: Runtime,
    fields: ChatRequest | CompletionRequest,
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
            raise context_exceeded(
                prompt.field, context=context, num_tokens=num_tokens, max_tokens=max_tokens
            )
    num_copied = fields.n * sum(len(prompt.token_ids) for prompt in prompts)
    if num_copied > max(context, MAX_COPIED_TOKENS):
        param = "n" if fields.n > 1 else "prompt"
        rule = f"at most {MAX_COPIED_TOKENS} prompt tokens in all choices; got {num_copied}"
        raise bad_field(param, rule)
    if fields.output_limit and fields.num_logprobs is not None and not fields.stream:
        num_alternatives = fields.n * len(prompts) * max_tokens * (1 + fields.num_logprobs)
        if num_alternatives > MAX_ALTERNATIVES:
            raise answer_too_large("chat" if isinstance(fields, ChatRequest) else "text")
    if fields.min_tokens > max_tokens:
        raise bad_field("min_tokens", f"at most max_tokens, {max_tokens}; got {fields.min_tokens}")
    check_token_ids(runtime.tokenizer, fields.stop_token_ids, field="stop_token_ids")
    for token_id, _ in fields.logit_bias:
        if token_id >= vocab_size:
            raise bad_field("logit_bias", f"token ids are 0 to {vocab_size - 1}; got {token_id}")


def _sampling(
    fields: ChatRequest | CompletionRequest,
    defaults: SamplingDefaults,
    *,
    max_tokens: int,
    seed: int,
) -> Sampling:
    return Sampling(
        seed=seed,
        max_tokens=max_tokens,
        temperature=_given(fields.temperature, defaults.temperature),
        top_p=_given(fields.top_p, defaults.top_p),
        top_k=max(0, _given(fields.top_k, defaults.top_k)),
        min_p=_given(fields.min_p, defaults.min_p),
        repetition_penalty=_given(fields.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias=fields.logit_bias,
        num_logprobs=fields.num_logprobs,
        min_tokens=fields.min_tokens,
        ignore_eos=fields.ignore_eos,
        stop=fields.stop,
        stop_token_ids=fields.stop_token_ids,
        include_stop=fields.include_stop_str_in_output,
        skip_special_tokens=fields.skip_special_tokens,
    )


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
