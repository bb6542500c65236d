"""The table of docs/testing.md: planted bugs, the smallest example of each, the seconds, and what peers find.

    python tests/programs/planted_bugs.py

It ends with the false alarms of 10,000 correct kernels.

The peers search with the same reference: numpy.testing.assert_allclose(rtol=1e-5, atol=1e-6) on 20 random float32
arrays, with out=np.zeros(...); the same on arrays of Hypothesis alone (200, without our layouts, margins and bounds);
and the kernel compiled with boundscheck=True on random arrays, where Numba can compile it ("-" where it cannot). Each
search has a process of its own, since some of the bugs destroy its memory: "crash".
"""

# ruff: noqa: E402
import os
import sys
import time
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("helpers", "testing")]

import correct
import numba
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from planted import PLANTED
from test_planted import search, smallest_example

from scratchnet.errors import ContractError
from scratchnet.testing import assert_matches_reference, calls

CORRECT = 10_000
RTOL = {"rtol": 1e-5, "atol": 1e-6}
DTYPE = {"float32": np.float32, "int64": np.int64, "complex64": np.complex64}


def call(planted, kernel, inputs):
    """One run as such a test would make it: `out` is empty memory, and nothing but values is compared."""
    expected = np.asarray(planted.reference(*[x.copy() for x in inputs]))
    dtype = expected.dtype if expected.dtype.kind in "iub" else inputs[0].dtype
    if calls.fills(kernel, len(inputs), 1, {}):
        got = np.zeros(expected.shape, dtype)
        kernel(*inputs, got)
    else:
        got = kernel(*inputs)
    np.testing.assert_allclose(got, expected, **RTOL)


def shapes(planted, length):
    words = planted.words.replace(",", " ").split()
    lengths = {a: length(a) for a in sorted({a for word in words for a in word.partition("<")[0] + word[-1:]})}
    return [
        (tuple(lengths[a] for a in word.partition("<")[0]), lengths[word[-1]] if "<" in word else 0) for word in words
    ]


def dtype_of(planted):
    return DTYPE[planted.options.get("dtypes", ["float32"])[0]]


def random_inputs(planted, rng):
    dtype, inputs = dtype_of(planted), []
    for shape, below in shapes(planted, lambda _: int(rng.integers(1, 100))):
        if below:
            inputs.append(rng.integers(0, below, shape))
        elif dtype is np.int64:
            inputs.append(rng.choice([*range(-9, 0), *range(1, 10)], shape))
        elif dtype is np.complex64:
            inputs.append((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype))
        else:
            inputs.append(rng.standard_normal(shape).astype(dtype))
    return inputs


def with_numpy(planted, kernel=None):
    rng = np.random.default_rng(0)
    for _ in range(20):
        call(planted, kernel or planted.ready, random_inputs(planted, rng))


def with_hypothesis(planted):
    dtype = dtype_of(planted)
    elements = {
        np.float32: st.floats(-1000, 1000, width=32),
        np.int64: st.integers(-99, 99).filter(bool),
        np.complex64: st.complex_numbers(max_magnitude=1000, width=64),
    }[dtype]

    @settings(
        max_examples=200,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate],
        derandomize=True,
    )
    @given(st.data())
    def test(data):
        drawn = []
        for shape, below in shapes(planted, lambda a: data.draw(st.integers(a.isupper() or "<" in planted.words, 33))):
            of = numpy_strategies.arrays(
                np.int64 if below else dtype, shape, elements=st.integers(0, below - 1) if below else elements
            )
            drawn.append(data.draw(of))
        call(planted, planted.ready, drawn)

    test()


def with_boundscheck(planted):
    compiled = numba.njit(**{**(planted.compiled or {}), "boundscheck": True})(planted.kernel)
    try:
        call(planted, compiled, random_inputs(planted, np.random.default_rng(0)))
    except AssertionError:  # of assert_allclose, not of the flag
        pass
    except IndexError:
        raise
    except Exception:  # Numba has many for what it cannot compile
        return "-"


def ours(planted):
    try:
        search(planted)
    except ContractError as error:
        return f"`{smallest_example(error)}`"


def found(search, planted):
    """What a search in a process of its own returns; "yes" if it raises, "crash" if it ends its process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        try:
            answer = search(planted) or "no"
        except BaseException:
            answer = "yes"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answers:
        answer = answers.read()
    _, status = os.waitpid(child, 0)
    return answer if status == 0 else "crash"


def false_alarms(kernels):
    """How many correct kernels are rejected."""
    rng, rejected = np.random.default_rng(0), 0
    with np.errstate(all="ignore"):
        for number in range(kernels):
            call, options = correct.draw(number, rng)
            try:
                assert_matches_reference(*call, layouts=("C",), **options)
            except ContractError as error:
                print(error)
                rejected += 1
    return rejected


def main():
    peers = {"numpy.testing": with_numpy, "Hypothesis": with_hypothesis, "boundscheck": with_boundscheck}
    columns = ["the message has", "smallest example", "seconds", *peers]
    print(f"| planted bug: the kernel ... | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    total = dict.fromkeys(["ours", *peers], 0)
    for kind, planted in PLANTED.items():
        start = time.perf_counter()
        example = found(ours, planted)
        seconds = time.perf_counter() - start
        answers = {name: found(peer, planted) for name, peer in peers.items()}
        for name, answer in {"ours": "no" if example == "no" else "yes", **answers}.items():
            total[name] += answer in ("yes", "crash")
        cells = [kind, f"`{planted.found}`", example, f"{seconds:.1f}", *answers.values()]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"found of {len(PLANTED)}: {', '.join(f'{name} {n}' for name, n in total.items())}")
    print(f"false alarms: {false_alarms(CORRECT)} of {CORRECT:,} correct kernels")


if __name__ == "__main__":
    main()
