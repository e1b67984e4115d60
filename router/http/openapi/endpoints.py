"""Every path of the API, as the document shows it."""

from typing import Any

from router.anthropic.schemas import MessagesRequest
from router.http.openapi.endpoint import Endpoint
from router.http.openapi.message_answers import MessageError, MessageEvent, MessageShape, TokenCount
from router.http.openapi.openai_answers import ChatChunk, ChatCompletion, Embeddings, TextCompletion
from router.http.openapi.operator_answers import (
    AnthropicModel,
    AnthropicModelList,
    HealthShape,
    ModelList,
    ModelShape,
    Readiness,
    ServerLoad,
    Text,
    Tokens,
    Traces,
    Version,
)
from router.http.openapi.response_answers import Deleted, InputItems, ResponseEvent, ResponseShape
from router.http.responses.kept import MAX_LISTED
from router.openai.embeddings import EmbeddingRequest
from router.openai.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from router.responses.schemas import ResponseRequest

_HELLO = [{"role": "user", "content": "Hello"}]
_CHATS = (
    Endpoint(
        path="/v1/chat/completions",
        summary="Answer a chat",
        request=ChatRequest,
        answer=ChatCompletion,
        event=ChatChunk,
        asked={"messages": _HELLO, "max_tokens": 16},
    ),
    Endpoint(
        path="/v1/completions",
        summary="Continue a text, or several",
        request=CompletionRequest,
        answer=TextCompletion,
        event=TextCompletion,
        asked={"prompt": "Once upon a time", "max_tokens": 16},
    ),
)
_EMBEDDINGS = (
    Endpoint(
        path="/v1/embeddings",
        summary="A vector of each text",
        request=EmbeddingRequest,
        answer=Embeddings,
        asked={"input": "Hello"},
    ),
)
_RESPONSES = (
    Endpoint(
        path="/v1/responses",
        summary="Answer items",
        request=ResponseRequest,
        answer=ResponseShape,
        event=ResponseEvent,
        asked={"input": "Hello", "max_output_tokens": 16},
    ),
    Endpoint(
        path="/v1/responses/{ident}",
        method="get",
        summary="A response that was kept",
        answer=ResponseShape,
        statuses=(404, 429, 503),
    ),
    Endpoint(
        path="/v1/responses/{ident}",
        method="delete",
        summary="Forget a response",
        answer=Deleted,
        statuses=(404, 503),
    ),
    Endpoint(
        path="/v1/responses/{ident}/input_items",
        method="get",
        summary="What a response was made from",
        answer=InputItems,
        query={
            "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED},
            "order": {"enum": ["asc", "desc"]},
            "after": {"type": "string"},
        },
        statuses=(400, 404, 429, 503),
    ),
    Endpoint(
        path="/v1/responses/{ident}/cancel",
        summary="Refused: no response is made in the background",
        answer=ResponseShape,
        statuses=(400, 404, 429, 503),
    ),
)
_MESSAGES = (
    Endpoint(
        path="/v1/messages",
        summary="Answer a chat, in Anthropic's shape",
        request=MessagesRequest,
        answer=MessageShape,
        event=MessageEvent,
        error=MessageError,
        asked={"messages": _HELLO, "max_tokens": 16},
    ),
    Endpoint(
        path="/v1/messages/count_tokens",
        summary="How many tokens a chat has",
        request=MessagesRequest,
        answer=TokenCount,
        error=MessageError,
        asked={"messages": _HELLO},
    ),
)
_TOKENS = (
    Endpoint(
        path="/tokenize",
        summary="The tokens of a text, or of a chat",
        request=TokenizeRequest,
        answer=Tokens,
        asked={"messages": _HELLO},
    ),
    Endpoint(
        path="/detokenize",
        summary="The text of some tokens",
        request=DetokenizeRequest,
        answer=Text,
        asked={"tokens": [1, 2, 3]},
    ),
    Endpoint(
        path="/tokenizer_info",
        method="get",
        summary="What clients need that make prompts themselves",
        answer=dict[str, Any],
        query={"model": {"type": "string"}},
        statuses=(400, 404, 503),
    ),
)
_MODELS = (
    Endpoint(
        path="/v1/models",
        method="get",
        summary="The models served here",
        answer=ModelList,
        to_anthropic=AnthropicModelList,
    ),
    Endpoint(
        path="/v1/models/{model}",
        method="get",
        summary="One model",
        answer=ModelShape,
        to_anthropic=AnthropicModel,
        statuses=(404,),
    ),
)
_OPEN = (
    Endpoint(
        path="/health",
        method="get",
        summary="Whether this process lives",
        answer=HealthShape,
        is_open=True,
    ),
    Endpoint(
        path="/ping", method="get", summary="The same as /health", answer=HealthShape, is_open=True
    ),
    Endpoint(path="/ping", summary="The same as /health", answer=HealthShape, is_open=True),
    Endpoint(
        path="/ready",
        method="get",
        summary="Whether a request would be served now",
        answer=Readiness,
        is_open=True,
    ),
    Endpoint(
        path="/metrics", method="get", summary="Metrics for Prometheus", answer=str, is_open=True
    ),
)
_SERVER = (
    Endpoint(path="/version", method="get", summary="Baton's version", answer=Version),
    Endpoint(
        path="/load", method="get", summary="Choices in flight at this router", answer=ServerLoad
    ),
    Endpoint(
        path="/cluster",
        method="get",
        summary="The workers, their blocks and load, and how KV moved",
        answer=dict[str, Any],
    ),
    Endpoint(
        path="/requests/{request}",
        method="get",
        summary="What became of a request of the last minutes, and of each of its choices",
        answer=Traces,
        statuses=(404,),
    ),
    Endpoint(
        path="/trace/{request}",
        method="get",
        summary="The same as /requests",
        answer=Traces,
        statuses=(404,),
    ),
)
ENDPOINTS = (*_CHATS, *_EMBEDDINGS, *_RESPONSES, *_MESSAGES, *_TOKENS, *_MODELS, *_OPEN, *_SERVER)
