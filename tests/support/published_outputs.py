"""Outputs as the families' model cards and templates document them, and what each says."""

from dataclasses import dataclass, field

from support.outputs import tokenizer_with, weather

from protocol.formats.choose import choose_formats
from protocol.formats.contract import Tool
from protocol.formats.formats import Formats
from protocol.text.tokenizer import Tokenizer

CITY = '{"city": "Paris"}'
TOOLS = (weather(), Tool(name="get_time", parameters={"type": "object", "properties": {}}))


@dataclass(frozen=True, kw_only=True)
class Family:
    """A tokeniser's tokens, and words of the template by which the formats are known."""

    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    template: str
    generation_prompt: str = ""

    def tokenizer(self) -> Tokenizer:
        return tokenizer_with(special=self.special, added=self.added, template=self.template)

    def formats(self, tokenizer: Tokenizer) -> Formats:
        return choose_formats(tokenizer)


@dataclass(frozen=True, kw_only=True)
class Published:
    family: str
    text: str
    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str, bool]] = field(default_factory=list)
    prompt_ends: str = ""
    """After the family's generation prompt."""


_QWEN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
_IM = ("<|im_start|>", "<|im_end|>")
_ASSISTANT = "<|im_start|>assistant\n"
_DEEPSEEK = (
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    *("<｜tool▁calls▁end｜>", "<｜Assistant｜>"),
)
_DEEPSEEK_TEMPLATE = "{# <｜tool▁calls▁begin｜> </think> #}"
FAMILIES = {
    "hermes": Family(
        special=_IM, added=_QWEN[:2], template="{# <tool_call> #}", generation_prompt=_ASSISTANT
    ),
    "hermes+think": Family(
        special=_IM,
        added=_QWEN,
        template="{# <tool_call> </think> #}",
        generation_prompt=_ASSISTANT,
    ),
    "hermes as text": Family(
        special=_IM, template="{# <tool_call> </think> #}", generation_prompt=_ASSISTANT
    ),
    "qwen3_coder": Family(
        special=_IM,
        added=_QWEN,
        template="{# <tool_call><function=f><parameter=a> </think> #}",
        generation_prompt=_ASSISTANT,
    ),
    "llama3_json": Family(
        special=("<|python_tag|>", "<|eot_id|>", "<|end_header_id|>"),
        template="{# <|python_tag|> parameters #}",
        generation_prompt="<|end_header_id|>\n\n",
    ),
    "pythonic": Family(
        special=("<|python_start|>", "<|python_end|>", "<|eot|>", "<|header_end|>"),
        template="{# <|python_start|> #}",
        generation_prompt="<|header_end|>\n\n",
    ),
    "lfm2": Family(
        special=(*_IM, "<|tool_call_start|>", "<|tool_call_end|>"),
        template="{# <|tool_call_start|> #}",
        generation_prompt=_ASSISTANT,
    ),
    "olmo3": Family(special=_IM, template="{# <function_calls> #}", generation_prompt=_ASSISTANT),
    "mistral": Family(
        special=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "[/INST]"),
        template="{# [TOOL_CALLS] [ARGS] #}",
        generation_prompt="[/INST]",
    ),
    "mistral_list": Family(
        special=("[TOOL_CALLS]", "[/INST]"),
        template="{# [TOOL_CALLS] #}",
        generation_prompt="[/INST]",
    ),
    "deepseek_v3": Family(
        special=_DEEPSEEK,
        added=_QWEN[2:],
        template=_DEEPSEEK_TEMPLATE + "{# ```json #}",
        generation_prompt="<｜Assistant｜>",
    ),
    "deepseek_v31": Family(
        special=_DEEPSEEK,
        added=_QWEN[2:],
        template=_DEEPSEEK_TEMPLATE,
        generation_prompt="<｜Assistant｜>",
    ),
    "deepseek_v32": Family(
        special=("｜DSML｜", "<｜Assistant｜>"),
        added=_QWEN[2:],
        template="",
        generation_prompt="<｜Assistant｜>",
    ),
    "glm": Family(
        special=("<|assistant|>",),
        added=(*_QWEN, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        template="{# <tool_call> <arg_key> </think> #}",
        generation_prompt="<|assistant|>",
    ),
    "kimi": Family(
        special=(
            *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|im_middle|>"),
            *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        ),
        added=_QWEN[2:],
        template="{# <|tool_calls_section_begin|> </think> #}",
        generation_prompt="<|im_middle|>",
    ),
    "minimax": Family(
        added=("<minimax:tool_call>", "</minimax:tool_call>", *_QWEN[2:]),
        special=("]~b]",),
        template="{# <minimax:tool_call> </think> #}",
        generation_prompt="]~b]ai\n",
    ),
    "harmony": Family(
        special=(
            *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"),
            "<|return|>",
        ),
        template="{# <|channel|> <|call|> #}",
        generation_prompt="<|start|>assistant",
    ),
    "kimi_k3": Family(
        special=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        template="{# '<|open|>' '<|close|>' '<|sep|>' ('think') ('tools') ('argument') #}",
        generation_prompt='<|end_of_msg|><|open|>message role="assistant"<|sep|>',
    ),
    "seed": Family(
        special=("<seed:bos>",),
        added=("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
        template="{# </seed:think> <seed:tool_call> #}",
        generation_prompt="<seed:bos>assistant\n",
    ),
    "cohere": Family(
        special=(
            *("<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>"),
            *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|CHATBOT_TOKEN|>"),
        ),
        template="{# <|START_ACTION|> <|END_THINKING|> #}",
        generation_prompt="<|CHATBOT_TOKEN|>",
    ),
    "nemotron": Family(special=_IM, template="{# <TOOLCALL> #}", generation_prompt=_ASSISTANT),
    "phi4": Family(
        special=("<|tool_call|>", "<|/tool_call|>", "<|assistant|>"),
        template="{# <|tool_call|> <|/tool_call|> #}",
        generation_prompt="<|assistant|>",
    ),
    "apriel": Family(
        special=_IM,
        template="{# <tool_calls> [BEGIN FINAL RESPONSE] #}",
        generation_prompt=_ASSISTANT,
    ),
}

PUBLISHED = (
    Published(family="hermes", text="Hello there.\n", content="Hello there.\n"),
    Published(
        family="hermes",
        text='<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="hermes",
        text="I will look.\n\n<tool_call>\n"
        '{"arguments": {"city":"Par\\"is } </tool_call>",  "n": [1, {}]}, "name": "get_weather"}\n'
        '</tool_call>\n<tool_call>\n{"name": "get_time"}\n</tool_call>\nDone.',
        content="I will look.Done.",
        calls=[
            ("get_weather", '{"city":"Par\\"is } </tool_call>",  "n": [1, {}]}', True),
            ("get_time", "{}", True),
        ],
    ),
    Published(
        family="hermes+think",
        text='<think>\nThe user asks.\n</think>\n\n<tool_call>\n{"name": "get_weather",'
        ' "arguments": {"city": "Paris"}}\n</tool_call>',
        reasoning="The user asks.",
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="hermes+think",
        prompt_ends="<think>\n",
        text="The user asks.\n</think>\n\nParis.",
        reasoning="The user asks.",
        content="Paris.",
    ),
    Published(
        family="hermes+think",
        prompt_ends="<think>\n\n</think>\n\n",
        text="Paris is nice.",
        content="Paris is nice.",
    ),
    Published(
        family="hermes as text",
        text='<think>Hm.</think>Look: <tool_call>{"name": "get_weather", "arguments": '
        '"{\\"city\\": \\"Paris\\"}"}</tool_call>',
        reasoning="Hm.",
        content="Look:",
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="qwen3_coder",
        text="<think>\nOh.\n</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\n"
        'Paris "le" \nsoir\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=metric>\n'
        'True\n</parameter>\n<parameter=spots>\n["a", "b"]\n</parameter>\n</function>\n'
        "</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>",
        reasoning="Oh.",
        calls=[
            (
                "get_weather",
                '{"city": "Paris \\"le\\" \\nsoir", "days": 3, "metric": true,'
                ' "spots": ["a", "b"]}',
                True,
            ),
            ("get_time", "{}", True),
        ],
    ),
    Published(
        family="qwen3_coder",
        prompt_ends="<think>\n\n</think>\n\n",
        text="<function=get_weather>\n<parameter=city>\nParis\n<parameter=days>\n2\n</function>"
        "\n</tool_call>",
        calls=[("get_weather", '{"city": "Paris", "days": 2}', True)],
    ),
    Published(
        family="llama3_json",
        text='{"name": "get_weather", "parameters": {"city": "Paris"}}',
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="llama3_json",
        text='<|python_tag|>{"type": "function", "name": "get_weather", "parameters":'
        ' {"city": "Paris"}}; {"name": "get_time", "parameters": {}}',
        calls=[("get_weather", CITY, True), ("get_time", "{}", True)],
    ),
    Published(
        family="llama3_json",
        text='{"name": "Paris", "parameters": {}} is {"a": 1}',
        content='{"name": "Paris", "parameters": {}} is {"a": 1}',
    ),
    Published(family="llama3_json", text='{"city": 1, "b"', content='{"city": 1, "b"'),
    Published(
        family="llama3_json",
        text='See {"name": "get_time", "parameters": {}}',
        content='See {"name": "get_time", "parameters": {}}',
    ),
    Published(
        family="pythonic",
        text="[get_weather(city='Pa\\'r)is', days=3, metric=True, spots=[\"a\", 'b']), get_time()]",
        calls=[
            (
                "get_weather",
                '{"city": "Pa\'r)is", "days": 3, "metric": true, "spots": ["a", "b"]}',
                True,
            ),
            ("get_time", "{}", True),
        ],
    ),
    Published(
        family="pythonic",
        text='<|python_start|>[get_weather(city="Paris")]<|python_end|>',
        calls=[("get_weather", CITY, True)],
    ),
    Published(family="pythonic", text="[1, 2] are two", content="[1, 2] are two"),
    Published(family="pythonic", text="[other(a=1)] ok", content="[other(a=1)] ok"),
    Published(
        family="pythonic",
        text="[get_time(), get_weather(city=where)]",
        content="get_weather(city=where)]",
        calls=[("get_time", "{}", True)],
    ),
    Published(
        family="lfm2",
        text='<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>Checking.',
        content="Checking.",
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="olmo3",
        text='<function_calls>get_weather(city="Paris")\nget_time()</function_calls>',
        calls=[("get_weather", CITY, True), ("get_time", "{}", True)],
    ),
    Published(
        family="mistral",
        text="[THINK]Let me see.[/THINK]Well.[TOOL_CALLS]get_weather[ARGS]"
        '{"city": "Paris"}[TOOL_CALLS]get_time[ARGS]{}',
        reasoning="Let me see.",
        content="Well.",
        calls=[("get_weather", CITY, True), ("get_time", "{}", True)],
    ),
    Published(
        family="mistral",
        text='[TOOL_CALLS]get_weather[CALL_ID]VvvODy9mT[ARGS]{"city": "Paris"}',
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="mistral_list",
        text='[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}},'
        ' {"name": "get_time", "arguments": {}}]',
        calls=[("get_weather", CITY, True), ("get_time", "{}", True)],
    ),
    Published(
        family="deepseek_v3",
        prompt_ends="<think>\n",
        text="Hm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        'get_weather\n```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>'
        "function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        reasoning="Hm.",
        calls=[("get_weather", CITY, True), ("get_time", "{}", True)],
    ),
    Published(
        family="deepseek_v31",
        prompt_ends="</think>",
        text="Sure.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        content="Sure.",
        calls=[("get_weather", CITY, True), ("get_time", "{}", True)],
    ),
    Published(
        family="deepseek_v32",
        prompt_ends="</think>",
        text='I look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="get_time">\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        content="I look.",
        calls=[("get_weather", '{"city": "Paris", "days": 2}', True), ("get_time", "{}", True)],
    ),
    Published(
        family="glm",
        text="\n<think>Hm</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>"
        "Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
        "<tool_call>get_time</tool_call>",
        reasoning="Hm",
        calls=[("get_weather", '{"city": "Paris", "days": 3}', True), ("get_time", "{}", True)],
    ),
    Published(
        family="kimi",
        prompt_ends="<think>",
        text="I must look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>'
        "functions.get_time:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        reasoning="I must look.",
        calls=[("get_weather", CITY, True), ("get_time", "{}", True)],
    ),
    Published(
        family="minimax",
        prompt_ends="<think>\n",
        text='So.\n</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n'
        '<parameter name="city">Paris</parameter>\n<parameter name="spots">["a"]</parameter>\n'
        "</invoke>\n</minimax:tool_call>",
        reasoning="So.",
        calls=[("get_weather", '{"city": "Paris", "spots": ["a"]}', True)],
    ),
    Published(
        family="harmony",
        text="<|channel|>analysis<|message|>Need the weather.<|end|><|start|>assistant<|channel|>"
        "commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Paris"}<|call|>',
        reasoning="Need the weather.",
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="harmony",
        text="<|channel|>analysis<|message|>Simple.<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>I look.<|end|><|start|>assistant to=functions.get_time<|channel|>commentary"
        "<|message|>{}<|call|>",
        reasoning="Simple.",
        content="I look.",
        calls=[("get_time", "{}", True)],
    ),
    Published(
        family="harmony",
        text="<|channel|>final<|message|>Paris.\n<|return|>",
        content="Paris.",
    ),
    Published(
        family="kimi_k3",
        prompt_ends="<|open|>think<|sep|>",
        text="Hm.<|close|>think<|sep|><|open|>response<|sep|>I look.<|close|>response<|sep|>"
        '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>'
        '<|open|>argument key="city" '
        'type="string"<|sep|>Paris<|close|>argument<|sep|><|open|>argument key="days" type="number"'
        '<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool="get_time" '
        'index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>',
        reasoning="Hm.",
        content="I look.",
        calls=[("get_weather", '{"city": "Paris", "days": 3}', True), ("get_time", "{}", True)],
    ),
    Published(
        family="apriel",
        prompt_ends="Here are my reasoning steps:\n",
        text="1. Hm.\n[BEGIN FINAL RESPONSE]\nParis.",
        reasoning="1. Hm.",
        content="Paris.",
    ),
    Published(
        family="lfm2",
        text="<|tool_call_start|>[get_weather(city='Paris\nle soir')]<|tool_call_end|>",
        calls=[("get_weather", '{"city": "Paris\\nle soir"}', True)],
    ),
    Published(
        family="seed",
        text="<seed:think>Hm</seed:think>Paris.",
        reasoning="Hm",
        content="Paris.",
    ),
    Published(
        family="seed",
        text="Look.\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
        "</function>\n</seed:tool_call>",
        content="Look.",
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="cohere",
        text='<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0",'
        ' "tool_name": "get_weather", "parameters": {"city": "Paris"}}\n]<|END_ACTION|>',
        reasoning="Hm.",
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="cohere",
        text="<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Paris.<|END_RESPONSE|>",
        reasoning="Hm.",
        content="Paris.",
    ),
    Published(
        family="nemotron",
        text='<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}, '
        '{"name": "get_time", "arguments": {}}]</TOOLCALL>',
        calls=[("get_weather", CITY, True), ("get_time", "{}", True)],
    ),
    Published(
        family="phi4",
        text='<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>',
        calls=[("get_weather", CITY, True)],
    ),
    Published(
        family="apriel",
        text='Well. <tool_calls>[{"name": "get_time", "arguments": {}}]</tool_calls>',
        content="Well.",
        calls=[("get_time", "{}", True)],
    ),
)
