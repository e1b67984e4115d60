"""LiteLLM by five of its prefixes, and its fallback when the context is exceeded."""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # offline
import litellm

URL, MODEL = sys.argv[1:3]
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
            "required": ["city"],
        },
    },
}
BASES = {
    "openai": f"{URL}/v1",
    "hosted_vllm": f"{URL}/v1",
    "lm_studio": f"{URL}/v1",
    "text-completion-openai": f"{URL}/v1",
    "anthropic": URL,
}
litellm.num_retries = 0

for prefix, base in BASES.items():
    model = {"model": f"{prefix}/{MODEL}", "api_base": base, "api_key": "none"}
    whole = litellm.completion(**model, messages=ASK, max_tokens=10, temperature=0)
    chunks = litellm.completion(**model, messages=ASK, max_tokens=10, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content, prefix
    if prefix != "text-completion-openai":
        called = litellm.completion(
            **model, messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=200
        )
        (call, *_) = called.choices[0].message.tool_calls
        assert call.function.name == "get_weather", prefix

too_long = [{"role": "user", "content": "word " * 5000}]
model = {"api_base": BASES["openai"], "api_key": "none", "messages": too_long}
try:
    litellm.completion(model=f"openai/{MODEL}", **model)
except litellm.ContextWindowExceededError:
    pass
else:
    raise AssertionError("a prompt beyond the context was served")
router = litellm.Router(
    model_list=[
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{MODEL}",
                "api_base": BASES["openai"],
                "api_key": "none",
                **more,
            },
        }
        for name, more in (("small", {}), ("large", {"mock_response": "from the large one"}))
    ],
    context_window_fallbacks=[{"small": ["large"]}],
    num_retries=0,
)
answer = router.completion(model="small", messages=too_long)
assert answer.choices[0].message.content == "from the large one"
