"""Every path of the API, as the document shows it."""

from typing import Any

from router.http.openapi.answers import (
    ChatChunk,
    ChatCompletion,
    Health,
    Model,
    Models,
    Readiness,
    Text,
    TextCompletion,
    Tokens,
    Traces,
)
from router.http.openapi.endpoint import Endpoint
from router.openai.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

_HELLO = [{"role": "user", "content": "Hello"}]
GENERATING = (
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
READING = (
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
    Endpoint(path="/v1/models", method="get", summary="The models served here", answer=Models),
    Endpoint(
        path="/v1/models/{model}",
        method="get",
        summary="One model",
        answer=Model,
        statuses=(404,),
    ),
)
OPERATING = (
    Endpoint(
        path="/health",
        method="get",
        summary="Whether this process lives",
        answer=Health,
        is_open=True,
    ),
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
    Endpoint(
        path="/cluster",
        method="get",
        summary="The workers, their blocks and load, and how KV moved",
        answer=dict[str, Any],
    ),
    Endpoint(
        path="/trace/{request}",
        method="get",
        summary="What became of a recent request",
        answer=Traces,
        statuses=(404,),
    ),
)
ENDPOINTS = (*GENERATING, *READING, *OPERATING)
