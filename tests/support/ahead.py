"""Compiles kernels ahead of time for GPUs that are not here, by Triton and its own ptxas."""

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Most a block may have on sm_80, sm_90 and sm_100."""
_TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Call:
    """A kernel and what is known about its arguments when it is compiled."""

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: frozenset[str]
    """Multiples of 16: addresses, and integers that happen to be."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def compiled(self, arch: int) -> Any:
        numbers = {name: i for i, name in enumerate(self.signature)}
        source = ASTSource(
            fn=self.kernel,
            signature=dict(self.signature),
            constexprs=dict(self.constants),
            attrs={(numbers[name],): [["tt.divisibility", 16]] for name in self.aligned},
        )
        target = GPUTarget("cuda", arch, 32)
        return triton.compile(source, target=target, options=dict(self.options))


def recorded(module: ModuleType, name: str, launch: Callable[[], object]) -> list[Call]:
    """The calls of kernel `name` of `module` that `launch` makes, with tensors on torch's meta
    device, specialised as Triton's JIT would: no memory, no driver."""
    kernel, calls = getattr(module, name), list[Call]()

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(count > 0 for count in grid)
            return lambda *args, **named: calls.append(specialised(kernel, args, named))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, Recorder())
        launch()
    assert calls
    return calls


def specialised(kernel: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Call:
    names = [param.name for param in kernel.params]
    given = dict(zip(names, args, strict=False)) | named
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned = set()
    for param in kernel.params:
        name, value = param.name, given.pop(param.name)
        special = isinstance(value, int) and not param.do_not_specialize
        if param.is_constexpr or value is None or (special and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            if not param.do_not_specialize_on_alignment:
                aligned.add(name)
        elif isinstance(value, int):
            signature[name] = "i32" if abs(value) < 1 << 31 else "i64"
            if special and value % 16 == 0:
                aligned.add(name)
        else:
            assert isinstance(value, float)
            signature[name] = "fp32"
    return Call(
        kernel=kernel,
        signature=signature,
        constants=constants,
        aligned=frozenset(aligned),
        options=given,
    )


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """What a block of the one kernel in it takes; SPILLS: instructions on local memory."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    usage, code = (
        subprocess.run(
            [str(_TOOLS / "cuobjdump"), flag, str(path)],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout
        for flag in ("-res-usage", "-sass")
    )  # fmt: skip
    taken = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", code, re.MULTILINE))
    return taken | {"SPILLS": spills, "INSTRUCTIONS": instructions, "LOOP": _hot_loop(code)}


def _hot_loop(code: str) -> int:
    """Instructions of the smallest loop that has the most matrix products; 0 without any."""
    lines = [
        (int(at, 16), text)
        for at, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*)$", code, re.MULTILINE)
    ]
    loops = []
    for at, text in lines:
        to = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if to and int(to[1], 16) < at:
            body = [line for place, line in lines if int(to[1], 16) <= place <= at]
            products = sum(bool(re.search(r"\bHG?MMA\b", line)) for line in body)
            loops.append((products, -len(body)))
    most, size = max(loops, default=(0, 0))
    return -size if most else 0


def assert_fits(call: Call, arch: int, folder: Path) -> None:
    assert_kernel_fits(call.compiled(arch), arch, folder)


def assert_kernel_fits(kernel: Any, arch: int, folder: Path) -> None:
    taken = resources(kernel.asm["cubin"], folder)
    assert 0 < taken["REG"] <= 255
    assert taken["STACK"] == taken["LOCAL"] == taken["SPILLS"] == 0, f"spills: {taken}"
    assert taken["SHARED"] + kernel.metadata.shared <= SHARED_BYTES[arch]
