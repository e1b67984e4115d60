"""A request body to generations ready for dispatch: model, prompt, context and token ids checked.

Thread-safe, because it parses and encodes megabytes: no work for the event loop. Every mistake of
the client ends here, as an `ApiError` naming the field.
"""

import secrets
import time
from typing import TypeVar

from protocol.ids import RequestId
from protocol.messages import Sampling
from protocol.text.sampling_defaults import SamplingDefaults
from router.api.errors import bad_field, context_exceeded
from router.api.generation import (
    MAX_ALTERNATIVES,
    Generation,
    Kind,
    answer_too_large,
    check_model,
)
from router.api.parsing import parse_body
from router.openai.encode import Prompt, check_token_ids, encode_messages, encode_prompts
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
T = TypeVar("T")


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
            priority=fields.priority,
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
