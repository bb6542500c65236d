"""The peak of this CPU: fused multiply-adds on registers and nothing else."""

import ctypes
import functools
import time
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np

LOOPS, CHAINS = 1_000_000, 10  # ten independent chains hide the latency of two units
ROUNDS = 12  # of 2 ms; the best counts, since other programs can only make one longer


def lanes() -> int:
    """Numbers of float32 in a vector."""
    features = llvm.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx2") else 4


def operations(threads: int) -> int:
    """That `multiply_adds` does on so many threads, in float32."""
    return 2 * LOOPS * CHAINS * lanes() * threads


@functools.cache
def multiply_adds() -> Callable[[np.ndarray], None]:
    """f(row): LOOPS times x * a + x in each of CHAINS vectors a, where x is the one in row. It releases the GIL."""
    vector, fma = f"<{lanes()} x float>", f"@llvm.fma.v{lanes()}f32"
    lines = [
        f"declare {vector} {fma}({vector}, {vector}, {vector})",
        f"define void @chains(i64 %n, {vector}* %p) {{\nentry:\n  %x = load {vector}, {vector}* %p, align 4",
        "  br label %loop\nloop:\n  %i = phi i64 [0, %entry], [%i1, %loop]",
        *(f"  %a{c} = phi {vector} [%x, %entry], [%b{c}, %loop]" for c in range(CHAINS)),
        *(f"  %b{c} = call {vector} {fma}({vector} %a{c}, {vector} %x, {vector} %x)" for c in range(CHAINS)),
        "  %i1 = add i64 %i, 1\n  %more = icmp slt i64 %i1, %n\n  br i1 %more, label %loop, label %done\ndone:",
        *(f"  store volatile {vector} %b{c}, {vector}* %p, align 4" for c in range(CHAINS)),
        "  ret void\n}",
    ]
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    options = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(*options)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly("\n".join(lines)), machine)
    engine.finalize_object()
    chains = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(engine.get_function_address("chains"))

    def run(row: np.ndarray, engine: object = engine) -> None:  # the engine keeps the code
        chains(LOOPS, row.ctypes.data)

    return run


def peak(threads: int) -> float:
    """Operations a second in float32 of so many threads, by what one does now; in float64 they are half as many.

    Others are not started: where OpenMP binds threads to cores, they would all run on the core of this one.
    """
    run, row, best = multiply_adds(), np.full(16, 0.5, np.float32), float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run(row)
        best = min(best, time.perf_counter() - began)
    return operations(threads) / best
