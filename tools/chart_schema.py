"""The chart's values.schema.json: what the processes' settings may be is written into it.

    python -m tools.chart_schema --write

`settings` of the router and of the pools are the processes' own, in camelCase; those that the chart
itself sets are not among them. The rest of the file is written by hand, and laid out here.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from decode_worker.settings import DecodeSettings
from router.settings import RouterSettings

SCHEMA = Path(__file__).resolve().parents[1] / "charts" / "baton" / "values.schema.json"
OF_CHART = frozenset(
    """
    advertise aliases_file api_key config device dtype host keys_file kv_port max_model_len
    metrics_port model parent_pid port process redis redis_ca redis_password redis_prefix
    redis_username served_name siblings worker
    """.split()  # noqa: SIM905 - words read better so
)
"""Settings with a place of their own among the values, or that a pod cannot choose."""
WIDTH = 118
KEPT = frozenset({"type", "enum", "minimum", "maximum", "exclusiveMinimum", "pattern"})


def settings_schema(settings: type[BaseModel]) -> dict[str, Any]:
    """What a `settings` of the values may hold; null stands for the process's own default."""
    fields = settings.model_json_schema()["properties"]
    known = {
        to_camel(name): _nullable(field)
        for name, field in sorted(fields.items())
        if name not in OF_CHART
    }
    return {"type": ["object", "null"], "additionalProperties": False, "properties": known}


def with_settings(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` with the settings that the code has."""
    definitions = dict(schema["definitions"])
    definitions["routerSettings"] = settings_schema(RouterSettings)
    definitions["workerSettings"] = settings_schema(DecodeSettings)
    return {**schema, "definitions": definitions}


def laid_out(value: Any, indent: int = 0) -> str:
    """As JSON, with a line for what fits on one."""
    flat = json.dumps(value)
    if not isinstance(value, dict) or len(flat) + indent <= WIDTH:
        return flat
    pad = " " * (indent + 2)
    rows = [f"{pad}{json.dumps(key)}: {laid_out(one, indent + 2)}" for key, one in value.items()]
    return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"


def _nullable(field: Mapping[str, Any]) -> dict[str, Any]:
    """One type, its bounds, and null."""
    options = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    (only,) = options
    kept = {key: value for key, value in only.items() if key in KEPT}
    if "enum" in kept:
        return {"enum": [*kept["enum"], None]}
    return {**kept, "type": [kept["type"], "null"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="the file, rather than a look at it")
    text = laid_out(with_settings(json.loads(SCHEMA.read_text()))) + "\n"
    if parser.parse_args().write:
        SCHEMA.write_text(text)
    elif text != SCHEMA.read_text():
        sys.exit(
            f"{SCHEMA.name} is not what the settings say: python -m tools.chart_schema --write"
        )


if __name__ == "__main__":
    main()
