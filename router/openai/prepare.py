"""A request body to generations ready for dispatch: model, prompt, context and token ids checked.

Thread-safe, because it parses and encodes megabytes: no work for the event loop. Every mistake of
the client ends here, as an `ApiError` naming the field.
"""

import secrets
import time
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from protocol.formats.formats import Output
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
from router.openai.chat import conversation_of
from router.openai.conversation import Conversation
from router.openai.encode import Prompt, check_token_ids, encode_chat, encode_prompts
from router.openai.output import PLAIN, check_wishes, held_to, open_output
from router.openai.schemas import (
    MAX_COPIED_TOKENS,
    MAX_SEED,
    ChatRequest,
    CompletionRequest,
    SamplingFields,
)
from router.openai.scoring import check_num_scores, reading_of, shown_scores
from router.openai.structured import answer_grammar
from router.requests.events import GenerationRequest
from router.requests.family import ForkFamily
from router.runtime import Runtime

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for `/v1/completions`."""
T = TypeVar("T")


def prepare_chat(runtime: Runtime, body: bytes, request: RequestId, context: int) -> Generation:
    """`context` is what `context_tokens` said on the event loop."""
    fields = parse_body(ChatRequest, body)
    return prepare_conversation(runtime, conversation_of(fields), request, context)


def prepare_conversation(
    runtime: Runtime, conversation: Conversation, request: RequestId, context: int
) -> Generation:
    """Of whatever API. Raises ApiError, in this API's names of fields."""
    fields, chat = conversation.sampling, conversation.chat
    check_model(runtime, fields.model)
    _check_num_choices(runtime, fields, num_prompts=1)
    check_wishes(runtime, chat)
    token_ids = encode_chat(runtime.tokenizer, chat, context=context)
    prompt = Prompt(field=chat.named("messages"), token_ids=tuple(token_ids))
    room = max(1, context - len(token_ids))
    clamps = runtime.limits.clamp_max_tokens or conversation.clamps_max_tokens
    default = min(runtime.sampling_defaults.max_tokens or room, room)
    wish = _Wish(
        kind="chat",
        sampling=fields,
        prompts=(prompt,),
        max_tokens=_limit(conversation.max_tokens, room=room, clamps=clamps) or default,
        is_limited=conversation.max_tokens is not None,
        num_logprobs=conversation.num_logprobs,
        output=open_output(runtime.formats, conversation, token_ids),
        show_reasoning=conversation.show_reasoning,
    )
    _check_sizes(runtime, wish, context=context)
    return _generation(runtime, wish, request)


def prepare_completion(
    runtime: Runtime, body: bytes, request: RequestId, context: int
) -> Generation:
    """`context` is what `context_tokens` said on the event loop."""
    fields = parse_body(CompletionRequest, body)
    check_model(runtime, fields.model)
    _check_num_choices(runtime, fields, num_prompts=len(fields.prompt))
    prompts = encode_prompts(runtime.tokenizer, fields, context=context)
    room = context - max(len(prompt.token_ids) for prompt in prompts)
    wish = _Wish(
        kind="text",
        sampling=fields,
        prompts=prompts,
        max_tokens=_given(
            _limit(fields.max_tokens, room=room, clamps=runtime.limits.clamp_max_tokens),
            max(1, min(COMPLETION_MAX_TOKENS, room)),
        ),
        is_limited=fields.max_tokens is not None,
        num_logprobs=fields.logprobs,
        output=held_to(answer_grammar(fields)),
    )
    _check_sizes(runtime, wish, context=context)
    return _generation(runtime, wish, request)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A request of either kind, its prompts encoded."""

    kind: Kind
    sampling: SamplingFields
    prompts: tuple[Prompt, ...]
    max_tokens: int
    is_limited: bool
    """Whether the client named `max_tokens`."""
    num_logprobs: int | None
    output: Output = PLAIN
    show_reasoning: bool = True


def _limit(asked: int | None, *, room: int, clamps: bool) -> int | None:
    """As asked, or what there is of it where that will do."""
    if asked is None or room < 1 or not clamps:
        return asked
    return min(asked, room)


def _generation(runtime: Runtime, wish: _Wish, request: RequestId) -> Generation:
    fields, kind, scores = wish.sampling, wish.kind, shown_scores(wish.sampling)
    owners = [prompt for prompt in wish.prompts for _ in range(fields.n)]
    families = [ForkFamily() for _ in wish.prompts]
    seed = secrets.randbits(63) if fields.seed is None else fields.seed % MAX_SEED
    first = _sampling(wish, runtime.sampling_defaults)
    requests = list[GenerationRequest]()
    for index, prompt in enumerate(owners):
        number, of_prompt = index % fields.n, index // fields.n
        reading = None if kind == "chat" and index else reading_of(scores, prompt.token_ids)
        one = GenerationRequest(
            id=request if len(owners) == 1 else RequestId(f"{request}.{index}"),
            token_ids=prompt.token_ids,
            sampling=msgspec.structs.replace(first, seed=(seed + index) % MAX_SEED),
            salt=fields.cache_salt,
            reading=reading,
            deadline_s=runtime.limits.request_timeout_s,
            priority=fields.priority,
            family=None if fields.n == 1 or (number and reading) else families[of_prompt],
            is_first=number == 0,
        )
        requests.append(one)
    return Generation(
        kind=kind,
        id=f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{request}",
        created=int(time.time()),
        model=runtime.model,
        stream=fields.stream,
        include_usage=fields.include_usage,
        continuous_usage=fields.continuous_usage,
        n=fields.n,
        requests=tuple(requests),
        prompt_tokens=sum(len(prompt.token_ids) for prompt in wish.prompts),
        echoes=tuple(prompt.echo for prompt in owners),
        new_parser=wish.output.new_parser,
        show_reasoning=wish.show_reasoning,
        return_token_ids=fields.return_token_ids,
        tokens_as_ids=fields.return_tokens_as_token_ids,
        scores=scores,
    )


def _check_num_choices(runtime: Runtime, fields: SamplingFields, *, num_prompts: int) -> None:
    most = min(runtime.limits.max_choices, runtime.max_in_flight_of_one)
    if num_prompts * fields.n > most:
        param = "prompt" if num_prompts > most else "n"
        raise bad_field(param, f"at most {most} prompts times n; got {num_prompts} x {fields.n}")


def _check_sizes(runtime: Runtime, wish: _Wish, *, context: int) -> None:
    fields, max_tokens = wish.sampling, wish.max_tokens
    for prompt in wish.prompts:
        num_tokens = len(prompt.token_ids)
        if num_tokens == 0:
            raise bad_field(prompt.field, "has no tokens; at least one is needed")
        if num_tokens + max_tokens > context:
            raise context_exceeded(
                prompt.field, context=context, num_tokens=num_tokens, max_tokens=max_tokens
            )
    num_copied = fields.n * sum(len(prompt.token_ids) for prompt in wish.prompts)
    if num_copied > max(context, MAX_COPIED_TOKENS):
        param = "n" if fields.n > 1 else wish.prompts[0].field
        rule = f"at most {MAX_COPIED_TOKENS} prompt tokens in all choices; got {num_copied}"
        raise bad_field(param, rule)
    if not fields.stream:
        check_num_scores(shown_scores(fields), num_prompt_tokens=num_copied)
    if wish.is_limited and wish.num_logprobs is not None and not fields.stream:
        num_alternatives = fields.n * len(wish.prompts) * max_tokens * (1 + wish.num_logprobs)
        if num_alternatives > MAX_ALTERNATIVES:
            raise answer_too_large(wish.kind)
    if fields.min_tokens > max_tokens:
        raise bad_field("min_tokens", f"at most max_tokens, {max_tokens}; got {fields.min_tokens}")
    vocab_size = runtime.tokenizer.vocab_size
    for name in ("stop_token_ids", "allowed_token_ids"):
        check_token_ids(runtime.tokenizer, getattr(fields, name) or (), field=name)
    for token_id, _ in fields.logit_bias:
        if token_id >= vocab_size:
            raise bad_field("logit_bias", f"token ids are 0 to {vocab_size - 1}; got {token_id}")


def _sampling(wish: _Wish, defaults: SamplingDefaults) -> Sampling:
    """But for the seed."""
    fields = wish.sampling
    return Sampling(
        seed=0,
        max_tokens=wish.max_tokens,
        temperature=_given(fields.temperature, defaults.temperature),
        top_p=_given(fields.top_p, defaults.top_p),
        top_k=max(0, _given(fields.top_k, defaults.top_k)),
        min_p=_given(fields.min_p, defaults.min_p),
        repetition_penalty=_given(fields.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias=fields.logit_bias,
        num_logprobs=wish.num_logprobs,
        min_tokens=fields.min_tokens,
        ignore_eos=fields.ignore_eos,
        stop=fields.stop,
        stop_token_ids=fields.stop_token_ids,
        include_stop=fields.include_stop_str_in_output,
        skip_special_tokens=fields.skip_special_tokens,
        allowed_token_ids=tuple(dict.fromkeys(fields.allowed_token_ids or ())),
        grammar=wish.output.grammar,
        marks=wish.output.marks,
    )


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
