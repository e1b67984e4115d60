"""A request body to generations ready for dispatch: model, prompt, context and token ids checked.

Thread-safe, because it parses and encodes megabytes: no work for the event loop. Every mistake of
the client ends here, as an `ApiError` naming the field.
"""

import secrets
import time
from dataclasses import dataclass
from functools import partial
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
)
from router.api.model_choice import Choose
from router.api.parsing import parse_body
from router.api.replay import already_ended
from router.models.model_text import ChosenModel
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


def prepare_chat(runtime: Runtime, body: bytes, request: RequestId, choose: Choose) -> Generation:
    """Raises ApiError, and what `choose` does."""
    fields = parse_body(ChatRequest, body)
    conversation = conversation_of(fields)
    return prepare_conversation(runtime, conversation, request, choose(fields.model))


def prepare_conversation(
    runtime: Runtime, conversation: Conversation, request: RequestId, chosen: ChosenModel
) -> Generation:
    """Of whatever API. Raises ApiError, in this API's names of fields."""
    fields, chat = conversation.sampling, conversation.chat
    text, context = chosen.text, chosen.context_tokens
    _check_num_choices(runtime, fields, num_prompts=1)
    check_wishes(text, chat)
    token_ids = encode_chat(text.tokenizer, chat, context=context)
    prompt = Prompt(field=chat.named("messages"), token_ids=tuple(token_ids))
    room = max(1, context - len(token_ids))
    clamps = runtime.limits.clamp_max_tokens or conversation.clamps_max_tokens
    default = min(text.sampling_defaults.max_tokens or room, room)
    wish = _Wish(
        kind="chat",
        chosen=chosen,
        sampling=fields,
        prompts=(prompt,),
        max_tokens=_limit(conversation.max_tokens, room=room, clamps=clamps) or default,
        is_limited=conversation.max_tokens is not None,
        num_logprobs=conversation.num_logprobs,
        output=open_output(text.formats, conversation, token_ids),
        show_reasoning=conversation.show_reasoning,
    )
    _check_sizes(wish)
    return _generation(runtime, wish, request)


def prepare_completion(
    runtime: Runtime, body: bytes, request: RequestId, choose: Choose
) -> Generation:
    """Raises ApiError, and what `choose` does."""
    fields = parse_body(CompletionRequest, body)
    chosen = choose(fields.model)
    tokenizer, context = chosen.text.tokenizer, chosen.context_tokens
    _check_num_choices(runtime, fields, num_prompts=len(fields.prompt))
    prompts = encode_prompts(tokenizer, fields, context=context)
    room = context - max(len(prompt.token_ids) for prompt in prompts)
    wish = _Wish(
        kind="text",
        chosen=chosen,
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
    _check_sizes(wish)
    return _generation(runtime, wish, request)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A request of either kind, its prompts encoded."""

    kind: Kind
    chosen: ChosenModel
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
    text = wish.chosen.text
    first = _sampling(wish, text.sampling_defaults)
    ended = partial(already_ended, text.tokenizer)
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
            version=text.version,
            already_ended=ended,
        )
        requests.append(one)
    return Generation(
        kind=kind,
        id=f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{request}",
        created=int(time.time()),
        chosen=wish.chosen,
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


def _check_sizes(wish: _Wish) -> None:
    fields, max_tokens = wish.sampling, wish.max_tokens
    tokenizer, context = wish.chosen.text.tokenizer, wish.chosen.context_tokens
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
    for name in ("stop_token_ids", "allowed_token_ids"):
        check_token_ids(tokenizer, getattr(fields, name) or (), field=name)
    for token_id, _ in fields.logit_bias:
        if token_id >= tokenizer.vocab_size:
            rule = f"token ids are 0 to {tokenizer.vocab_size - 1}; got {token_id}"
            raise bad_field("logit_bias", rule)


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
