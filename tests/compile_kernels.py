"""Compile the kernels for the GPU named, kind:architecture:warp size, on a machine that need not have one."""

import os
import sys

if __name__ == "__main__":  # and not where pytest looks for examples in it
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lwta import kernels
from lwta.fused import tiling

SCALES = {"beta": "*fp32", "noise": "fp32", "tau": "fp32", "usage": "*fp32", "kl": "fp32", "seed": "*i64"}
NUMBERS = {"total": "i32", "period": "i32", "steps": "i32", "blocks": "i32", "S": "i32"}
FLOATS = ("sums_at", "divergence_at", "usage_upstream", "kl_upstream")


def compiled(kernel, constants, dtype, target, warps):
    """The kernel with these constants; every other argument has its type."""
    types = SCALES | NUMBERS | {"winner_at": "*i64"} | dict.fromkeys(FLOATS, "*fp32")
    types = {name: types.get(name, f"*{dtype}") for name in kernel.arg_names}
    constants = {name: value for name, value in constants.items() if name in types}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    return triton.compile(source, target=target, options={"num_warps": warps})


def main() -> None:
    kind, architecture, warp = sys.argv[1].split(":")
    target = GPUTarget(kind, int(architecture) if architecture.isdigit() else architecture, int(warp))
    silent = {"usage": None, "kl": None, "sums_at": None, "divergence_at": None, "steps": 1}
    silent |= {"usage_upstream": None, "kl_upstream": None}
    one = silent | {"total": 1, "period": 1}  # Triton takes a 1 for a constant
    for competitors, dtype, last, rest in (
        (2, "fp16", True, {}),
        (24, "bf16", True, silent),
        (5, "fp16", False, one),
    ):
        chunk, positions, warps = tiling(competitors, last, 2)
        sizes = {"U": competitors, "N": positions, "C": chunk, "LAST": last}
        sizes["K"] = triton.next_power_of_2(-(-competitors // chunk))
        constants = sizes | rest | {"NVIDIA": kind == "cuda", "RELAXED": True}
        for kernel in (kernels.forward, kernels.backward):
            compiled(kernel, constants, dtype, target, warps)


if __name__ == "__main__":
    main()
