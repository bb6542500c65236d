"""A job with two kernels, and a list of both for a helper; prints what tests of native/ahead.py ask for, as JSON.

The helper takes `last` first. With HELPER=stuck in the environment it hangs before it begins.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from scratchnet.native import ahead, cache
from scratchnet.native.compile import compile_stats, jit

stuck = Path(os.environ["SCRATCHNET_CACHE_DIR"], "stuck")
if os.environ.get("HELPER") == "stuck" and os.environ.get("SCRATCHNET_COMPILERS") == "1":
    stuck.touch()  # by now it ends with the job
    time.sleep(600)


@jit
def first(x):
    return x + 1


@jit
def last(x):
    return x * 2.5


started = []


class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        started.append(self)


subprocess.Popen = Popen  # type: ignore[misc]
ahead.offer(__name__, [f"{__name__}.first: l", f"{__name__}.last: d1"])


def has(name):
    return any(file.name.startswith(f"{name}-") for file in cache._folder().glob("*.kernel"))


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def report(**more):
    print(json.dumps({"stats": compile_stats(), "helpers": [p.pid for p in started], **more}), flush=True)


def main():
    """Compiles `first`, lets the helper compile `last`, and calls that, too."""
    results = [first(1)]
    if started:
        wait_for(lambda: has("last"))
    results.append(last(np.ones(1)).tolist())
    report(results=results)


def with_a_dead_helper():
    results = [first(1)]
    for helper in started:
        helper.kill()
        helper.wait()
    results.append(last(np.ones(1)).tolist())
    report(results=results)


def with_a_stuck_helper():
    """Says who the helper is, and waits to be ended; or ends by itself, if told so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it
    first(1)
    wait_for(stuck.exists)
    report()
    if sys.argv[1:] != ["exit"]:
        time.sleep(600)
