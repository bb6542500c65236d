"""Words that threads or processes share: read, written and waited for in an order that all of them see alike.

A word is an int64 in an array. What was written before `store_release(words, at, v)` is visible to whoever has read `v`
with `load_acquire`. So a word can say that something is ready. Give each writer a cache line of its own (`LINE` words),
let values only grow, and no lock is needed. Without the JIT the words are read and written by Python, one after the
other, which is the same on x86.
"""

import functools
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .compile import JIT_ENABLED, jit

LINE = 16  # 64-bit words between two writers: a cache line and the one beside it, which processors fetch in pairs

REACHED, ABORTED, LATE = 0, 1, 2  # how a wait ends


def _pointer(context, builder, signature, values):
    data = context.make_array(signature.args[0])(context, builder, values[0]).data
    return builder.gep(data, [values[1]])


def _typed_fetch_add(typing_context, words, at, amount):
    """words[at] += amount, at once for all; returns what it was."""

    def generate(context, builder, signature, values):
        return builder.atomic_rmw("add", _pointer(context, builder, signature, values), values[2], "acq_rel")

    return types.int64(words, types.intp, types.int64), generate


def _typed_compare_exchange(typing_context, words, at, expected, value):
    """words[at] = value if it is `expected`, at once for all; returns whether it was."""

    def generate(context, builder, signature, values):
        pointer = _pointer(context, builder, signature, values)
        found = builder.cmpxchg(pointer, values[2], values[3], "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(words, types.intp, types.int64, types.int64), generate


def _typed_load_acquire(typing_context, words, at):
    """words[at], and all that was written before it was."""

    def generate(context, builder, signature, values):
        return builder.load_atomic(_pointer(context, builder, signature, values), "acquire", 8)

    return types.int64(words, types.intp), generate


def _typed_store_release(typing_context, words, at, value):
    """words[at] = value, after all that this thread wrote before."""

    def generate(context, builder, signature, values):
        builder.store_atomic(values[2], _pointer(context, builder, signature, values), "release", 8)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.int64), generate


def _typed_pause(typing_context):
    """A hint to the core that this thread only waits."""

    def generate(context, builder, signature, values):
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), generate


# --- the same without the JIT -----------------------------------------------------------------------------------------


def _fetch_add(words, at, amount):
    old = words[at]
    words[at] = old + amount
    return old


def _compare_exchange(words, at, expected, value):
    found = words[at] == expected
    if found:
        words[at] = value
    return found


def _load_acquire(words, at):
    return words[at]


def _store_release(words, at, value):
    words[at] = value


def _pause():
    """Nothing: Python is slow enough."""


if JIT_ENABLED:
    fetch_add: Callable = intrinsic(_typed_fetch_add)
    compare_exchange: Callable = intrinsic(_typed_compare_exchange)
    load_acquire: Callable = intrinsic(_typed_load_acquire)
    store_release: Callable = intrinsic(_typed_store_release)
    pause: Callable = intrinsic(_typed_pause)
    let_others_run: Callable = types.ExternalFunction(
        "sched_yield" if os.name == "posix" else "SwitchToThread", types.int32()
    )
else:
    fetch_add, compare_exchange = _fetch_add, _compare_exchange
    load_acquire, store_release, pause = _load_acquire, _store_release, _pause
    let_others_run = functools.partial(time.sleep, 0)

# --- waiting (POSIX only) ---------------------------------------------------------------------------------------------

SPINS = 4096  # looks at a word before the waiting thread lets others run; with `pause` 40 to 200 us
YIELDS = 2048  # turns that it gives to others before it sleeps between two looks; about a millisecond
NAP = 50  # microseconds of sleep; the kernel adds about as much
NEVER = np.iinfo(np.int64).max  # a deadline that does not come

_CLOCK = getattr(time, "CLOCK_MONOTONIC", 0)
_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.uintp))
_usleep: Any = types.ExternalFunction("usleep", types.int32(types.uint32))


@jit
def _read_clock(scratch):
    _clock_gettime(_CLOCK, scratch.ctypes.data)
    return scratch[0] * 1_000_000_000 + scratch[1]


@jit
def _nap():
    _usleep(NAP)


def nanoseconds(scratch=None):
    """The clock of deadlines: nanoseconds that only grow, the same for all processes of a machine.

    Compiled code gives it an int64 array of 2 words to work with.
    """
    return time.clock_gettime_ns(_CLOCK)


clock, nap = (_read_clock, _nap) if JIT_ENABLED else (nanoseconds, functools.partial(time.sleep, NAP / 1e6))


@jit
def publish(words, at, value):
    """`store_release` that Python can call, too: whoever finds `value` also finds all that was written before."""
    store_release(words, at, value)


@jit
def wait_a_turn(words, abort, turn, deadline, spins, scratch):
    """One turn of a wait: a pause, then a gift of time to others, then a nap, as `turn` grows from 0.

    Returns REACHED, which here means "look again"; ABORTED once words[abort] != 0; LATE once clock() > deadline.
    deadline: in nanoseconds(); NEVER for none. spins: turns that only pause: SPINS where each waiting thread has a core
    to itself, few where it has not. scratch: int64 (2,), of this thread alone.
    """
    if load_acquire(words, abort) != 0:
        return ABORTED
    if turn < spins:
        pause()
    elif turn < spins + YIELDS:
        let_others_run()
    elif clock(scratch) > deadline:
        return LATE
    else:
        nap()
    return REACHED


@jit
def wait_until(words, at, value, abort, deadline, spins, scratch):
    """Wait until words[at] >= value. Returns REACHED, or ABORTED or LATE as `wait_a_turn` does."""
    turn = 0
    while load_acquire(words, at) < value:
        status = wait_a_turn(words, abort, turn, deadline, spins, scratch)
        if status != REACHED:
            return status
        turn += 1
    return REACHED
