"""Checked messages and prompts to token ids. What cannot fit is refused before it costs work.

May take a while: no work for the event loop.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from protocol.text.text_bounds import TextTooLong
from protocol.text.tokenizer import Tokenizer
from router.api.errors import ApiError, bad_field, context_exceeded
from router.openai.conversation import Chat
from router.openai.schemas import CompletionRequest
from router.openai.template_variables import template_variables
from router.openai.turns import Form, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    field: str
    """As the client named it, for messages."""
    token_ids: tuple[int, ...]
    echo: str = ""


def encode_chat(tokenizer: Tokenizer, chat: Chat, *, context: int) -> list[int]:
    """Token ids of a chat by the model's template. Raises ApiError 400; a chat that cannot fit is
    neither rendered nor tokenised."""
    field = chat.named("messages")
    num_parts = len(chat.turns)
    if num_parts <= context:
        num_parts = sum(len(turn.texts) + len(turn.calls) for turn in chat.turns)
    if num_parts > context:
        raise _too_long(field, context=context, num_tokens=num_parts)
    num_chars = sum(len(text) for turn in chat.turns for text in turn.texts)
    _check_length(tokenizer, num_chars, context=context, field=field)
    template = tokenizer.chat_template
    if template is None:
        raise bad_field(field, "this model has no chat template; use /v1/completions")
    variables = template_variables(template, chat)
    variables["continue_final"] = chat.continue_final
    with _refusals(field, context=context):
        return _encode_turns(tokenizer, chat.turns, template.knows_developer, variables)


def _encode_turns(
    tokenizer: Tokenizer, turns: Sequence[Turn], knows_developer: bool, variables: dict[str, Any]
) -> list[int]:
    """In the first form that the template takes."""
    refusal: ValueError | None = None
    for form in Form if any(turn.calls for turn in turns) else (Form.AS_GIVEN,):
        shown = [turn.as_shown(knows_developer=knows_developer, form=form) for turn in turns]
        try:
            return tokenizer.encode_chat(shown, **variables)
        except TextTooLong:
            raise
        except ValueError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def encode_text(
    tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, context: int, field: str
) -> list[int]:
    """Raises ApiError 400."""
    _check_length(tokenizer, len(text), context=context, field=field)
    with _refusals(field, context=context):
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)


@contextmanager
def _refusals(field: str, *, context: int) -> Iterator[None]:
    """What the tokeniser and the template say of `field`, in the client's words."""
    try:
        yield
    except TextTooLong as error:
        raise _too_long(field, context=context) from error
    except ValueError as error:
        raise bad_field(field, str(error).removeprefix("messages: ")) from error


def _check_length(tokenizer: Tokenizer, num_chars: int, *, context: int, field: str) -> None:
    """Refuses text that is too long whatever its tokens are, before it costs their making."""
    if num_chars > tokenizer.max_chars(context):
        raise _too_long(field, context=context)


def _too_long(field: str, *, context: int, num_tokens: int = 0) -> ApiError:
    """Of what was not tokenised to its end: it has `num_tokens` at least."""
    num_tokens = max(context, num_tokens)
    return context_exceeded(
        field, context=context, num_tokens=num_tokens, max_tokens=1, exact=False
    )


def encode_prompts(
    tokenizer: Tokenizer, fields: CompletionRequest, *, context: int
) -> tuple[Prompt, ...]:
    prompts = []
    for index, given in enumerate(fields.prompt):
        field = "prompt" if len(fields.prompt) == 1 else f"prompt[{index}]"
        if isinstance(given, str):
            special, text = fields.add_special_tokens, given
            ids = encode_text(
                tokenizer, given, add_special_tokens=special, context=context, field=field
            )
        elif len(given) + (least := _least_output(fields)) > context:
            raise context_exceeded(field, context=context, num_tokens=len(given), max_tokens=least)
        else:
            check_token_ids(tokenizer, given, field=field)
            ids, text = given, tokenizer.decode(given) if fields.echo else ""
        echo = text if fields.echo else ""
        prompts.append(Prompt(field=field, token_ids=tuple(ids), echo=echo))
    return tuple(prompts)


def _least_output(fields: CompletionRequest) -> int:
    return 1 if fields.max_tokens is None else fields.max_tokens


def check_token_ids(tokenizer: Tokenizer, token_ids: Sequence[int], *, field: str) -> None:
    largest = max(token_ids, default=0)
    if largest >= tokenizer.vocab_size:
        rule = f"token ids are 0 to {tokenizer.vocab_size - 1}; got {largest}"
        raise bad_field(f"{field}[{token_ids.index(largest)}]", rule)
