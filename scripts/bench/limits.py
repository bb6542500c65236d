"""What the machine itself can do: arithmetic on registers, copies of memory, copies by several processes."""

import ctypes
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import llvmlite.binding as llvm
import numpy as np
from collectives import Ranks
from engine import ELEMENTS, RANKS, Engine, Measure, aligned, bind, random_array, time_calls


class Registers(Measure):
    """The peak of the machine, on every thread: fused multiply-adds on registers, and copies of memory."""

    COPIES = 32  # so many that starting the threads does not count
    LOOPS, CHAINS = 1_000_000, 10  # ten independent chains hide the latency of two units

    def __init__(self, threads, folder):
        self.threads, self.pool = threads, ThreadPoolExecutor(threads)
        features = llvm.get_host_cpu_features()
        self.lanes = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(llvm.get_host_cpu_name(), features.flatten())
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(self.source()), machine)
        self.engine.finalize_object()
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)  # releases the GIL
        self.chains = prototype(self.engine.get_function_address("chains"))
        together = threading.Barrier(threads)
        list(self.pool.map(lambda rank: (together.wait(), bind(rank)), range(threads)))
        cut = ELEMENTS[0] // threads * ELEMENTS[1]
        self.copies = [(aligned((cut,)), random_array((cut,), rank)) for rank in range(threads)]

    def source(self):
        """chains(n, p): n times x * a + x in each of CHAINS vectors a, where x is the one at p."""
        vector, fma, chains = f"<{self.lanes} x float>", f"@llvm.fma.v{self.lanes}f32", range(self.CHAINS)
        lines = [
            f"declare {vector} {fma}({vector}, {vector}, {vector})",
            f"define void @chains(i64 %n, {vector}* %p) {{\nentry:\n  %x = load {vector}, {vector}* %p, align 4",
            "  br label %loop\nloop:\n  %i = phi i64 [0, %entry], [%i1, %loop]",
            *(f"  %a{c} = phi {vector} [%x, %entry], [%b{c}, %loop]" for c in chains),
            *(f"  %b{c} = call {vector} {fma}({vector} %a{c}, {vector} %x, {vector} %x)" for c in chains),
            "  %i1 = add i64 %i, 1\n  %more = icmp slt i64 %i1, %n\n  br i1 %more, label %loop, label %done\ndone:",
            *(f"  store volatile {vector} %b{c}, {vector}* %p, align 4" for c in chains),
            "  ret void\n}",
        ]
        return "\n".join(lines)

    def peak(self):
        return self

    def measure(self, seconds):
        """Seconds of arithmetic and of a copy, the best of several, and how much of each there is."""
        return {
            "seconds": min(time_calls(self.compute, seconds / 8) for _ in range(8)),
            "flops": 2 * self.LOOPS * self.CHAINS * self.lanes * self.threads,
            "copy": min(time_calls(self.copy, seconds / 8) for _ in range(8)),
            "bytes": self.COPIES * sum(x.nbytes for pair in self.copies for x in pair),
        }

    def compute(self):
        values = np.full((self.threads, 16), 0.5, np.float32)
        list(self.pool.map(lambda row: self.chains(self.LOOPS, row.ctypes.data), values))

    def copy(self):
        """Copies of an array of the kernels' size, a part of it on each thread."""
        list(self.pool.map(lambda pair: [np.copyto(*pair) for _ in range(self.COPIES)], self.copies))


class Copies(Engine):
    """What a merge and update would take if it only moved its bytes."""

    def pool(self, what, widths, batch_size, shards):
        parameters = sum((i + 1) * o for i, o in itertools.pairwise(widths))
        return Moving(4 * parameters * (shards + 4)) if what == "merge" else None
        # it reads the gradients of all shards, parameters and momentum, and writes the latter two


class Moving(Measure):
    """So many bytes read and written by processes as fast as they copy."""

    def __init__(self, nbytes):
        from scratchnet.parallel.comm.memory import SharedMemory

        self.ranks = Ranks(copying_rank, SharedMemory(nbytes))
        self.close = self.ranks.close

    def merge(self, seconds):
        return {"seconds": max(self.ranks.ask(max(2, round(seconds / 0.005))))}


def copying_rank(channel, rank, memory):
    """Copies one half of its part of the shared memory to the other, as often as it is asked to."""
    bind(rank)
    half = memory.size // (2 * RANKS)
    source, target = (memory.array((2 * rank + i) * half, half, np.uint8) for i in (0, 1))
    source[:] = target[:] = 1
    while True:
        count = channel.recv()
        start = time.perf_counter()
        for _ in range(count):
            np.copyto(target, source)
        channel.send((time.perf_counter() - start) / count)
