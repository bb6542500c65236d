"""Compilation: what the decorators promise, and a cache that many processes can share, lose and damage.

The cache is tested from outside: each case runs a small script of kernels in fresh processes.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest

from scratchnet import errors
from scratchnet.kernels import device
from scratchnet.native import cache
from scratchnet.native.compile import JIT_ENABLED, MAX_THREADS, get_num_threads, jit, set_num_threads, stamp

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="nothing is compiled")

# --- decorators -------------------------------------------------------------------------------------------------------


@jit
def divide(x, y):
    return x / y


@jit
def multiply_add(a, b, c):
    return a * b + c


@jit(reduction=True)
def count_nan(x):
    found = 0.0
    for value in x:
        found += 1.0 if value != value else 0.0
    return found


@jit
def grouped(a, b):
    """(a + b) - a: zero where b is lost in a, b if the compiler may reorder."""
    return (a + b) - a


def square(x):
    return x * x


def twice(x):
    return x + x


compiled_square, compiled_twice = jit(square), jit(twice)


@jit
def function(x):
    return x


@jit
def elementwise(x, out):
    for i in range(x.size):
        out[i] = function(x[i])


def applied(kernel, x):
    out = np.empty_like(x)
    kernel(x, out)
    return out.tolist()


@needs_jit
def test_division_by_zero_follows_numpy():
    assert divide(1.0, 0.0) == math.inf and math.isnan(divide(0.0, 0.0))


@needs_jit
def test_a_product_and_a_sum_are_rounded_once():
    tiny = 2.0**-30
    assert multiply_add(1 + tiny, 1 - tiny, -1.0) == -(tiny**2)  # two roundings give 0


@needs_jit
def test_sums_keep_their_order():
    assert grouped(1e30, 1.0) == 0.0


def test_nan_is_seen_in_reductions():
    assert count_nan(np.array([1.0, np.nan, np.inf, np.nan])) == 2.0


def test_a_stamp_rebinds_names_and_leaves_the_template_alone():
    x = np.array([1.0, 3.0])
    assert applied(stamp(elementwise, "squares", function=compiled_square), x) == [1, 9]
    assert applied(stamp(elementwise, "doubles", function=compiled_twice), x) == [2, 6]
    assert applied(elementwise, x) == [1, 3]


def test_a_stamp_has_its_own_name():
    kernel = stamp(elementwise, "squares", function=compiled_square)
    assert (kernel.__name__, kernel.__qualname__, kernel.__module__) == ("squares", "squares", __name__)


def test_a_stamp_of_a_plain_function_is_one():
    assert stamp(square, "renamed")(3) == 9 and not hasattr(stamp(square, "renamed"), "py_func")


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_are_set_for_numba():
    before = get_num_threads()
    for count in (1, MAX_THREADS):
        set_num_threads(count)
        assert get_num_threads() == numba.get_num_threads() == count
    set_num_threads(before)


@pytest.mark.parametrize("count", [0, -1, MAX_THREADS + 1, 1.0, True, "2", None])
def test_another_number_of_threads_is_refused(count):
    with pytest.raises(errors.ConfigError, match=rf"from 1 to {MAX_THREADS}, got {count!r}"):
        set_num_threads(count)


# --- the cache --------------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
import numpy as np
from numba import prange
from scratchnet.native import cache
from scratchnet.native.compile import compile_stats, jit, stamp

@jit
def square(x):
    return x * x

@jit
def twice(x):
    return 2 * x

def function(x):
    return x

@jit{options}
def elementwise(x, out):
    for i in {range}(x.size):
        out[i] = function(x[i])

kernels = [stamp(elementwise, "kernel", function=f) for f in (square, twice)]  # of the same name, on purpose

def main():
    x, results = np.arange(4.0), []
    for kernel in kernels:
        out = np.empty_like(x)
        kernel(x, out)
        results.append(out.tolist())
    modules = [name for name in ("scipy.linalg", "numba.np.linalg") if name in sys.modules]
    print(json.dumps({{"results": results, "stats": compile_stats(), "modules": modules}}))

if __name__ == "__main__":
    main()
"""
RIGHT = [[0, 1, 4, 9], [0, 2, 4, 6]]


class Scripts:
    """Runs the script above in new processes that share one cache."""

    def __init__(self, folder):
        self.file, self.cache = folder / "kernels.py", folder / "cache"
        self.write()

    def write(self, parallel=False, edit=("", "")):
        range_, options = ("prange", "(parallel=True)") if parallel else ("range", "")
        self.file.write_text(SCRIPT.format(range=range_, options=options).replace(*edit))

    def start(self, code="import kernels; kernels.main()", **environment):
        path = os.pathsep.join([str(self.file.parent), *sys.path])
        ours = {"PYTHONPATH": path, "SCRATCHNET_CACHE_DIR": str(self.cache), "SCRATCHNET_QUIET": "0"}
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **ours, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **environment):
        return self.finish(self.start(*arguments, **environment))

    @staticmethod
    def finish(process):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return {**json.loads(out.splitlines()[-1]), "stderr": err}

    def files(self):
        return sorted(self.cache.glob("*/*.kernel"))


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Scripts that ran twice, on an empty and on a filled cache."""
    scripts = Scripts(tmp_path_factory.mktemp("warm"))
    scripts.first, scripts.second = scripts.run(), scripts.run()
    return scripts


@pytest.fixture
def filled(warm, tmp_path):
    """Scripts with a filled cache of their own."""
    shutil.copytree(warm.cache, tmp_path / "cache")
    return Scripts(tmp_path)


@pytest.fixture
def scripts(filled):
    """Scripts whose cache has no kernels yet."""
    for file in filled.files():
        file.unlink()
    return filled


def compiled(run):
    return run["stats"][0]


@needs_jit
def test_a_second_process_compiles_nothing(warm):
    assert warm.first["stats"][:2] == [5, 0]  # two kernels, what each calls, and the LLVM module of simd.py
    assert warm.second["stats"] == [0, 3, 0.0]
    assert warm.first["results"] == warm.second["results"] == RIGHT


@needs_jit
def test_a_warm_start_leaves_most_of_numba_asleep(warm):
    assert warm.second["modules"] == []


@needs_jit
def test_the_first_run_says_that_it_compiles_and_the_second_is_silent(warm):
    first, last = warm.first["stderr"].splitlines()
    assert first == "scratchnet: compiling kernels for this CPU, once ..."
    assert last.startswith("scratchnet: compiled 5 kernels in ") and str(warm.cache) in last
    assert warm.second["stderr"] == ""


@needs_jit
def test_parallel_kernels_are_cached_too(scripts):
    scripts.write(parallel=True)
    assert compiled(scripts.run()) == 4
    second = scripts.run()
    assert compiled(second) == 0 and second["results"] == RIGHT


@needs_jit
def test_a_changed_source_is_compiled_anew(filled):
    filled.write(edit=("return 2 * x", "return 5 * x"))
    assert filled.run()["results"] == [[0, 1, 4, 9], [0, 5, 10, 15]]


@needs_jit
@needs_jit
def test_every_source_that_kernels_are_compiled_from_names_the_folder(monkeypatch):
    read, read_bytes = set(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.add(path) or read_bytes(path))
    assert cache._package_digest() == cache._PACKAGE_DIGEST
    device("cpu")  # imports all of them
    modules = [module for name, module in sys.modules.items() if name.startswith("scratchnet.kernels.cpu.")]
    functions = [x.py_func for module in modules for x in vars(module).values() if hasattr(x, "py_func")]
    sources = {Path(f.__code__.co_filename) for f in functions}
    assert len(sources) > 10 and sources <= read


def test_processes_that_start_together_share_the_work(scripts):
    runs = [scripts.finish(process) for process in [scripts.start() for _ in range(3)]]
    assert [run["results"] for run in runs] == [RIGHT] * 3
    assert sum(map(compiled, runs)) == 4


@needs_jit
def test_a_damaged_file_is_compiled_anew(filled):
    flipped, cut, empty, _ = filled.files()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    empty.write_bytes(b"")
    repaired = filled.run()
    assert compiled(repaired) == 3 and repaired["results"] == RIGHT
    assert compiled(filled.run()) == 0


@needs_jit
def test_without_a_writable_folder_kernels_compile_in_memory(scripts):
    run = scripts.run(SCRATCHNET_CACHE_DIR=os.path.join(os.devnull, "none"))
    assert compiled(run) == 5 and run["results"] == RIGHT and "no writable cache folder" in run["stderr"]


HOLD = """
import fcntl, pathlib, sys, time
from scratchnet.native import cache
lock = open(cache._folder() / "lock", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
(cache._folder() / "left.tmp").write_text("half a kernel")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(scripts):
    """A process that has the right to fill the cache, and does not use it."""
    process = scripts.start(HOLD)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


PATIENT = """
import time
import kernels

def sleep(seconds, sleep=time.sleep):
    print("waiting", flush=True)
    sleep(seconds)

kernels.cache.session._patience = 1e6
kernels.cache.time.sleep = sleep
kernels.main()
"""


@needs_jit
def test_a_killed_process_gives_up_the_lock_and_its_half_written_file(scripts, holder):
    waiting = scripts.start(PATIENT)
    assert waiting.stdout.readline() == "waiting\n"
    holder.kill()
    run = scripts.finish(waiting)
    assert compiled(run) == 4 and run["results"] == RIGHT
    assert len(scripts.files()) == 4 and not list(scripts.cache.glob("*/*.tmp"))


@needs_jit
def test_a_stopped_process_does_not_stop_the_others(scripts, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    impatient = "import kernels; kernels.cache.session._patience = 0.2; kernels.main()"
    run = scripts.run(impatient, SCRATCHNET_QUIET="1")
    assert compiled(run) == 4 and run["results"] == RIGHT and run["stderr"] == ""


def folder(monkeypatch, **environment):
    """The cache folder that a process with this environment has."""
    for name in ("SCRATCHNET_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    return cache._folder.__wrapped__()


def test_the_cache_is_where_the_user_keeps_caches(tmp_path, monkeypatch):
    home, caches, ours = (tmp_path / name for name in ("home", "caches", "ours"))
    assert folder(monkeypatch, HOME=home).parent == home / ".cache" / "scratchnet"
    assert folder(monkeypatch, HOME=home, XDG_CACHE_HOME=caches).parent == caches / "scratchnet"
    assert folder(monkeypatch, XDG_CACHE_HOME=caches, SCRATCHNET_CACHE_DIR=ours).parent == ours
    assert folder(monkeypatch, SCRATCHNET_CACHE_DIR=os.devnull) is None


def test_a_stale_folder_is_removed_and_a_fresh_one_is_not(tmp_path, monkeypatch):
    for name, days in [("kernels-old", 100), ("kernels-fresh", 1), ("foreign-old", 100)]:
        (tmp_path / name).mkdir()
        then = time.time() - days * 86400
        os.utime(tmp_path / name, (then, then))
    ours = folder(monkeypatch, SCRATCHNET_CACHE_DIR=tmp_path).name
    assert {path.name for path in tmp_path.iterdir()} == {"kernels-fresh", "foreign-old", ours}


def test_other_users_of_numba_keep_their_own_cache():
    assert "scratchnet" not in str(numba.config.CACHE_DIR)
    assert numba.njit(square)(3) == 9
