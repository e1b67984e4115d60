"""A field that the openai SDK, vLLM or SGLang documents is served, harmless or refused by name."""

from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionMessage,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)

from router.api.parsing import Schema
from router.openai.messages import MORE, Message, TextPart
from router.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    StreamOptions,
    TokenizeRequest,
)

VLLM_CHAT = (
    "use_beam_search top_k min_p repetition_penalty length_penalty stop_token_ids"
    " include_stop_str_in_output ignore_eos min_tokens skip_special_tokens"
    " spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs"
    " logprob_token_ids allowed_token_ids bad_words echo add_generation_prompt"
    " continue_final_message add_special_tokens documents chat_template chat_template_kwargs"
    " media_io_kwargs mm_processor_kwargs structured_outputs priority request_id session_id"
    " return_tokens_as_token_ids return_token_ids cache_salt kv_transfer_params"
    " ec_transfer_params vllm_xargs repetition_detection thinking_token_budget"
    " include_reasoning reasoning_effort stream_interval return_prompt_text"
)
VLLM_COMPLETION = (
    "use_beam_search top_k min_p repetition_penalty length_penalty stop_token_ids"
    " include_stop_str_in_output ignore_eos min_tokens skip_special_tokens"
    " spaces_between_special_tokens truncate_prompt_tokens allowed_token_ids prompt_logprobs"
    " bad_words prompt_embeds add_special_tokens response_format structured_outputs priority"
    " request_id session_id return_tokens_as_token_ids return_token_ids cache_salt"
    " kv_transfer_params vllm_xargs repetition_detection stream_interval"
)
VLLM_TOKENIZE = (
    "model prompt messages add_special_tokens return_token_strs add_generation_prompt"
    " continue_final_message chat_template chat_template_kwargs media_io_kwargs"
    " mm_processor_kwargs tools"
)
SGLANG = (
    "regex ebnf stop_regex no_stop_trim lora_path session_params custom_logit_processor"
    " custom_params return_hidden_states top_k min_p min_tokens"
)
SGLANG_CHAT = SGLANG + " separate_reasoning stream_reasoning chat_template_kwargs input_ids"


def fields_of(*types: Any) -> list[str]:
    return sorted(
        {
            name
            for one in types
            for name in getattr(one, "model_fields", None) or one.__annotations__
        }
    )


CHAT_PARAMS = fields_of(
    chat_create_params.CompletionCreateParamsNonStreaming,
    chat_create_params.CompletionCreateParamsStreaming,
)
COMPLETION_PARAMS = fields_of(
    completion_create_params.CompletionCreateParamsNonStreaming,
    completion_create_params.CompletionCreateParamsStreaming,
)


@pytest.mark.parametrize(
    ("schema", "documented"),
    [
        (ChatRequest, CHAT_PARAMS),
        (CompletionRequest, COMPLETION_PARAMS),
        (ChatRequest, VLLM_CHAT.split()),
        (CompletionRequest, VLLM_COMPLETION.split()),
        (TokenizeRequest, VLLM_TOKENIZE.split()),
        (ChatRequest, SGLANG_CHAT.split()),
        (CompletionRequest, SGLANG.split()),
    ],
)
def test_no_documented_field_is_unheard_of(schema: type[Schema], documented: list[str]) -> None:
    assert len(documented) > 10
    known = {*schema.__struct_fields__, *schema.unsupported}
    assert [name for name in documented if name not in known] == []
    assert not set(schema.__struct_fields__) & set(schema.unsupported)


@pytest.mark.parametrize(
    ("struct", "documented"),
    [
        (
            Message,
            fields_of(
                ChatCompletionAssistantMessageParam,
                ChatCompletionDeveloperMessageParam,
                ChatCompletionMessage,
                ChatCompletionSystemMessageParam,
                ChatCompletionUserMessageParam,
            ),
        ),
        (TextPart, fields_of(ChatCompletionContentPartTextParam)),
        (StreamOptions, fields_of(ChatCompletionStreamOptionsParam)),
    ],
)
def test_no_documented_field_of_a_message_is_unheard_of(struct: Any, documented: list[str]) -> None:
    ours = {*struct.__struct_fields__, *MORE, "type"}  # a part's type is its tag
    assert len(documented) > 1
    assert [name for name in documented if name not in ours] == []
