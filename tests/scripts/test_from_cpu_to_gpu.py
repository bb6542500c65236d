"""The page that says it all: one network in many places; rows whose bits must agree do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "from_cpu_to_gpu.py"

ROW = re.compile(r"^ *(\d+)  (.{28}) +([\d.]+) +([\d.]+)x   ([0-9a-f]{8})(?: same bits as row (\d+))?$", re.M)


def run(*flags):
    return subprocess.run([sys.executable, SCRIPT, *map(str, flags)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def rows():
    done = run("--epochs", 2, "--samples", 200, "--hidden", 8, "--workers", 2)
    assert done.returncode == 0, done.stderr
    found = [match.groups() for match in ROW.finditer(done.stdout)]
    return {name.strip(): (float(seconds), float(ratio), bits) for _, name, seconds, ratio, bits, _ in found}


def test_each_place_is_a_row_with_seconds_and_a_speed_up(rows):
    merges = [f"2 workers, {how}" for how in ("all-reduce", "parameter server", "local averaging")]
    assert {"NumPy, one process", "compiled, 1 thread", *merges} <= set(rows)
    assert all(seconds > 0 for seconds, _, _ in rows.values())
    assert rows["NumPy, one process"][1] == 1.0


def test_bits_agree_wherever_the_arithmetic_is_the_same(rows):
    bits = {name: row[2] for name, row in rows.items()}
    exact = {value for name, value in bits.items() if name[0] == "c" or "all-reduce" in name or "server" in name}
    local = {value for name, value in bits.items() if "averaging" in name}
    assert len(exact) == len(local) == 1
    assert len({*exact, *local, bits["NumPy, one process"]}) == 3  # other sums, other bits


def test_it_fits_on_a_page_and_refuses_what_it_could_not_time():
    assert len(SCRIPT.read_text().splitlines()) <= 100
    done = run("--epochs", 1)
    assert done.returncode == 1 and done.stderr == (
        "from_cpu_to_gpu.py: epochs: expected 2 or more, as the first is not timed, got 1\n"
    )
