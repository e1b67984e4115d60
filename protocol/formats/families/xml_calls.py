"""Formats whose calls have parameters one by one, each between tags and as bare text."""

from protocol.formats.table import (
    CONTENT,
    OTHER,
    SHOWN,
    START,
    OutputFormat,
    Takes,
    Transition,
    Written,
)


def _function_tags(name: str, tag: str, parameter: str, *, trims: bool) -> OutputFormat:
    begin, end = f"<{tag}>", f"</{tag}>"
    return OutputFormat(
        name=name,
        states={
            **SHOWN,
            "block": Takes.SPACE,
            "name": Takes.NAME,
            "parameters": Takes.PARAMETERS,
            "key": Takes.KEY,
            "value": Takes.TYPED,
        },
        rows={
            (CONTENT, begin): Transition("block"),
            (START, "<function="): Transition("name"),
            ("block", "<function="): Transition("name"),
            ("block", begin): Transition("block"),
            ("block", end): Transition(CONTENT),
            ("block", OTHER): Transition(CONTENT),
            ("name", ">"): Transition("parameters"),
            ("parameters", "<parameter="): Transition("key"),
            ("parameters", "<function="): Transition("name"),
            ("parameters", "</function>"): Transition("block"),
            ("parameters", end): Transition(CONTENT),
            ("key", ">"): Transition("value"),
            ("value", "</parameter>"): Transition("parameters"),
            ("value", "<parameter="): Transition("key"),
            ("value", "</function>"): Transition("block"),
        },
        written=Written(
            call=f"{begin}\n<function={{name}}>\n{{parameters}}</function>\n{end}",
            between="\n",
            parameter=parameter,
        ),
        trim_lines=trims,
    )


QWEN3_CODER = _function_tags(
    "qwen3_coder", "tool_call", "<parameter={key}>\n{value}\n</parameter>\n", trims=True
)
"""Qwen3-Coder, Qwen3.5, MiMo, Step 3.5, Nemotron 3."""
SEED = _function_tags(
    "seed", "seed:tool_call", "<parameter={key}>{value}</parameter>\n", trims=False
)

GLM = OutputFormat(
    name="glm",
    states={
        **SHOWN,
        "name": Takes.NAME,
        "parameters": Takes.PARAMETERS,
        "key": Takes.KEY,
        "gap": Takes.SKIP,
        "value": Takes.TYPED,
        "after": Takes.SPACE,
    },
    rows={
        (CONTENT, "<tool_call>"): Transition("name"),
        ("name", "\n"): Transition("parameters"),
        ("name", "<arg_key>"): Transition("key"),
        ("name", "</tool_call>"): Transition("after"),
        ("parameters", "<arg_key>"): Transition("key"),
        ("parameters", "</tool_call>"): Transition("after"),
        ("key", "</arg_key>"): Transition("gap"),
        ("gap", "<arg_value>"): Transition("value"),
        ("gap", "</tool_call>"): Transition("after"),
        ("value", "</arg_value>"): Transition("parameters"),
        ("after", "<tool_call>"): Transition("name"),
        ("after", OTHER): Transition(CONTENT),
    },
    written=Written(
        call="<tool_call>{name}\n{parameters}</tool_call>",
        between="\n",
        parameter="<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n",
    ),
)
"""GLM 4.5 and 4.6."""

_CLOSE = Written(
    call="<tool_call>{name}{parameters}</tool_call>",
    parameter="<arg_key>{key}</arg_key><arg_value>{value}</arg_value>",
)
GLM_CLOSE = GLM.replace(name="glm_close", written=_CLOSE)
"""GLM 4.7: without line breaks. Read alike."""


def _invoked(name: str, *, block: str, of: str, typed: str) -> OutputFormat:
    """`block`: the tag around the calls; `of`: before all other tags; `typed`: after a key, where
    the template says whether the value is a string."""
    begin, end = f"<{block}>", f"</{block}>"
    invoke, parameter = f'<{of}invoke name="', f'<{of}parameter name="'
    attributes = {("key", '">'): Transition("value")}
    if typed:
        attributes |= {("key", f'" {typed}="true">'): Transition("string")}
        attributes |= {("key", f'" {typed}="false">'): Transition("json")}
    said = f' {typed}="{{is_string}}"' if typed else ""
    return OutputFormat(
        name=name,
        states={
            **SHOWN,
            "block": Takes.SPACE,
            "name": Takes.NAME,
            "parameters": Takes.PARAMETERS,
            "key": Takes.KEY,
            "value": Takes.TYPED,
            "string": Takes.STRING,
            "json": Takes.JSON,
        },
        rows={
            (CONTENT, begin): Transition("block"),
            ("block", begin): Transition("block"),
            ("block", invoke): Transition("name"),
            ("block", end): Transition(CONTENT),
            ("block", OTHER): Transition(CONTENT),
            ("name", '">'): Transition("parameters"),
            ("parameters", parameter): Transition("key"),
            ("parameters", f"</{of}invoke>"): Transition("block"),
            ("parameters", end): Transition(CONTENT),
            **attributes,
            **{
                (state, f"</{of}parameter>"): Transition("parameters")
                for state in ("value", "string", "json")
            },
        },
        written=Written(
            begin=f"{begin}\n",
            call=f'{invoke}{{name}}">\n{{parameters}}</{of}invoke>',
            between="\n",
            end=f"\n{end}",
            parameter=f'{parameter}{{key}}"{said}>{{value}}</{of}parameter>\n',
        ),
    )


MINIMAX = _invoked("minimax", block="minimax:tool_call", of="", typed="")
DEEPSEEK_V32 = _invoked(
    "deepseek_v32", block="｜DSML｜function_calls", of="｜DSML｜", typed="string"
)

_RESPONSE = ("<|open|>response<|sep|>", "<|close|>response<|sep|>")
KIMI_K3 = OutputFormat(
    name="kimi_k3",
    states={
        **SHOWN,
        "block": Takes.SPACE,
        "name": Takes.NAME,
        "number": Takes.SKIP,
        "parameters": Takes.PARAMETERS,
        "key": Takes.KEY,
        "string": Takes.STRING,
        "json": Takes.JSON,
    },
    rows={
        **{(CONTENT, tag): Transition(CONTENT) for tag in _RESPONSE},
        (CONTENT, "<|close|>message<|sep|>"): Transition(CONTENT),
        (CONTENT, "<|open|>tools<|sep|>"): Transition("block"),
        ("block", '<|open|>call tool="'): Transition("name"),
        ("block", "<|close|>tools<|sep|>"): Transition(CONTENT),
        ("block", OTHER): Transition(CONTENT),
        ("name", '" index="'): Transition("number"),
        ("name", '"<|sep|>'): Transition("parameters"),
        ("number", '"<|sep|>'): Transition("parameters"),
        ("parameters", '<|open|>argument key="'): Transition("key"),
        ("parameters", "<|close|>call<|sep|>"): Transition("block"),
        ("key", '" type="string"<|sep|>'): Transition("string"),
        **{
            ("key", f'" type="{kind}"<|sep|>'): Transition("json")
            for kind in ("number", "boolean", "null", "object", "array")
        },
        **{
            (state, "<|close|>argument<|sep|>"): Transition("parameters")
            for state in ("string", "json")
        },
    },
    written=Written(
        begin=f"{_RESPONSE[0]}{_RESPONSE[1]}<|open|>tools<|sep|>",
        call='<|open|>call tool="{name}" index="{index}"<|sep|>{parameters}<|close|>call<|sep|>',
        end="<|close|>tools<|sep|>",
        parameter='<|open|>argument key="{key}" type="{type}"<|sep|>{value}'
        "<|close|>argument<|sep|>",
        answer="{text}".join(_RESPONSE),
    ),
)
