"""Compiles a kernel for a Hopper GPU without one, and reads what the assembler says of it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
# In a process of its own: in this one, decorated kernels are interpreted.
_PROGRAM = """
import importlib, json, os, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

order = json.loads(sys.argv[1])
kernel = getattr(importlib.import_module(order["module"]), order["kernel"])
names = kernel.arg_names
signature = {name: order["signature"][name] for name in names}
aligned = [["tt.divisibility", 16]]
attrs = {
    (names.index(name),): aligned
    for name, kind in signature.items()
    if kind.startswith("*") or name in order["divisible"]
}
source = ASTSource(kernel, signature, order["constexprs"], attrs)
options = {"num_warps": order["num_warps"], "num_stages": order["num_stages"], **order["options"]}
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
tool = triton.knobs.nvidia.cuobjdump.path
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(compiled.asm["cubin"])
    file.flush()
    usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
numbers = {key: int(value) for key, value in re.findall(r"([A-Z]+)(?:\\[\\d+\\])?:(\\d+)", usage)}
ptx = compiled.asm["ptx"]
memory = re.search(r"\\b(ld|st|atom|red|prefetch)\\.global|cp\\.async|ld\\.acquire", ptx)
waits_first = 0 <= ptx.find("griddepcontrol.wait") < memory.start()
local = numbers["LOCAL"] + numbers["STACK"]
print(json.dumps([numbers["REG"], local, compiled.metadata.shared, waits_first]))
"""


class Resources(NamedTuple):
    """What one thread, or one program, takes on the GPU."""

    num_regs: int
    spill_bytes: int  # local memory and stack
    shared_bytes: int
    waits_first: bool  # for the kernel before, ahead of all that it does to the GPU's memory


def compile_for_sm90(
    module: str,
    kernel: str,
    signature: Mapping[str, str],
    constexprs: Mapping[str, object],
    *,
    num_warps: int,
    num_stages: int,
    divisible: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
) -> Resources:
    """Compile `kernel` of `module`.

    Args:
        module: its dotted name.
        kernel: its name in the module.
        signature: every argument's type in Triton's words: "*bf16", "i32", "constexpr".
        constexprs: the values of those that are constexpr.
        num_warps: as launched.
        num_stages: as launched.
        divisible: integers that are multiples of 16 in production, as pointers always are: Triton
            compiles wide loads only for those.
        options: others of Triton's, as launched: "enable_fp_fusion", "maxnreg".
    """
    order = {
        "module": module,
        "kernel": kernel,
        "signature": dict(signature),
        "constexprs": dict(constexprs),
        "num_warps": num_warps,
        "num_stages": num_stages,
        "divisible": list(divisible),
        "options": dict(options or {}),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(order)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Resources(*json.loads(done.stdout.splitlines()[-1]))
