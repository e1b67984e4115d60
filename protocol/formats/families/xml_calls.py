"""Formats whose calls have parameters one by one, each between tags and as bare text."""

from protocol.formats.table import CONTENT, OTHER, SHOWN, START, Format, Row, Takes, Written


def _function_tags(name: str, tag: str, parameter: str, *, trims: bool) -> Format:
    begin, end = f"<{tag}>", f"</{tag}>"
    return Format(
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
            (CONTENT, begin): Row("block"),
            (START, "<function="): Row("name"),
            ("block", "<function="): Row("name"),
            ("block", begin): Row("block"),
            ("block", end): Row(CONTENT),
            ("block", OTHER): Row(CONTENT),
            ("name", ">"): Row("parameters"),
            ("parameters", "<parameter="): Row("key"),
            ("parameters", "<function="): Row("name"),
            ("parameters", "</function>"): Row("block"),
            ("parameters", end): Row(CONTENT),
            ("key", ">"): Row("value"),
            ("value", "</parameter>"): Row("parameters"),
            ("value", "<parameter="): Row("key"),
            ("value", "</function>"): Row("block"),
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

GLM = Format(
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
        (CONTENT, "<tool_call>"): Row("name"),
        ("name", "\n"): Row("parameters"),
        ("name", "<arg_key>"): Row("key"),
        ("name", "</tool_call>"): Row("after"),
        ("parameters", "<arg_key>"): Row("key"),
        ("parameters", "</tool_call>"): Row("after"),
        ("key", "</arg_key>"): Row("gap"),
        ("gap", "<arg_value>"): Row("value"),
        ("gap", "</tool_call>"): Row("after"),
        ("value", "</arg_value>"): Row("parameters"),
        ("after", "<tool_call>"): Row("name"),
        ("after", OTHER): Row(CONTENT),
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


def _invoked(name: str, *, block: str, of: str, typed: str) -> Format:
    """`block`: the tag around the calls; `of`: before all other tags; `typed`: after a key, where
    the template says whether the value is a string."""
    begin, end = f"<{block}>", f"</{block}>"
    invoke, parameter = f'<{of}invoke name="', f'<{of}parameter name="'
    attributes = {("key", '">'): Row("value")}
    if typed:
        attributes |= {("key", f'" {typed}="true">'): Row("string")}
        attributes |= {("key", f'" {typed}="false">'): Row("json")}
    said = f' {typed}="{{is_string}}"' if typed else ""
    return Format(
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
            (CONTENT, begin): Row("block"),
            ("block", begin): Row("block"),
            ("block", invoke): Row("name"),
            ("block", end): Row(CONTENT),
            ("block", OTHER): Row(CONTENT),
            ("name", '">'): Row("parameters"),
            ("parameters", parameter): Row("key"),
            ("parameters", f"</{of}invoke>"): Row("block"),
            ("parameters", end): Row(CONTENT),
            **attributes,
            **{
                (state, f"</{of}parameter>"): Row("parameters")
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
