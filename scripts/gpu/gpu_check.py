"""One command for a person with a GPU: are the cuda kernels right, how fast are they, does training come out the same?

It takes six minutes at most, and each row of results is on disk as soon as it is known: whatever breaks off, hangs or
crashes, what was found until then is in the report. Each phase is a process of its own with a share of the time; what
one leaves goes to the next ones. results.jsonl has the rows, report.json all of them, report.html pictures.

With NUMBA_ENABLE_CUDASIM=1 it goes through all of it in a small way, without any meaning of the times.
"""

import html
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_phases
import gpu_ranks
import gpu_steps

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.kernels import device

PHASES: dict[str, tuple[int, Callable[[Any, gpu_phases.Note], None]]] = {  # seconds of 360; certain things first
    "machine": (10, gpu_phases.versions),
    "compile": (70, gpu_phases.compile_all),
    "properties": (70, gpu_phases.properties),
    "large": (20, gpu_phases.large),
    "steps": (60, gpu_steps.steps),
    "kernels": (50, gpu_phases.kernels),
    "training": (30, gpu_phases.training),
    "ranks": (20, gpu_ranks.ranks),
    "checkers": (30, gpu_phases.checkers),
}
OTHERS = {"launches": gpu_phases.launch_all}  # what the checkers run


@dataclass
class Config:
    """Check the cuda kernels on this machine's GPU."""

    folder: str = flag("gpu-check", "where the report goes")
    seconds: int = flag(360, "after which everything ends")
    only: tuple[str, ...] = flag((), "phases, if not all", list(PHASES))
    examples: int = flag(30, "random calls of each kernel")
    rounds: int = flag(20, "timed calls of each kernel; the median counts")
    epochs: int = flag(3, "of the reference network on CPU and GPU")
    seed: int = flag(0, "of the data and initial weights")
    phase: str = flag("", "one phase alone, in this process", ["", *PHASES, *OTHERS])


def main(config: Config) -> None:
    device("cuda")  # or one line that says what is missing
    if gpu_phases.is_simulated():
        config.examples = min(config.examples, 2)
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config.phase:
        run_phase(config, config.phase)
        return
    (folder / "results.jsonl").unlink(missing_ok=True)
    chosen, end = list(config.only or PHASES), time.monotonic() + config.seconds
    for i, phase in enumerate(chosen):
        left = end - time.monotonic()
        limit = left * PHASES[phase][0] / sum(PHASES[later][0] for later in chosen[i:])
        print(f"--- {phase}, {limit:.0f} s at most", flush=True)
        start = time.monotonic()
        wrong = run_phase(config, phase) if gpu_phases.is_simulated() else _in_process(config, phase, limit)
        note(config, phase)(seconds_of_phase=time.monotonic() - start, wrong=wrong)
        report = write_report(folder)
    count = len(report["wrong"])
    print(f"{f'{count} FAILED' if count else 'ALL WELL'}; the report is in {folder}")
    if count:
        raise sn.ScratchnetError("something on this machine is not as it should be; see the report")


def run_phase(config: Config, phase: str) -> None:
    """One phase in this process."""
    from scratchnet.testing import interpreted

    function = OTHERS.get(phase) or PHASES[phase][1]
    with interpreted() if gpu_phases.is_simulated() else nullcontext():
        function(config, note(config, phase))


def _in_process(config: Config, phase: str, limit: float) -> str | None:
    """One phase in a process of its own; what is wrong with how it ended, or None."""
    given = [f"--{name}={getattr(config, name)}" for name in ("folder", "examples", "rounds", "epochs", "seed")]
    command = [sys.executable, __file__, "--phase", phase, *given]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, start_new_session=True, env=environment)
    try:
        status = process.wait(limit)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        os.killpg(process.pid, signal.SIGKILL)  # and those that it started
        process.wait()
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"no end within {limit:.0f} s"
    return None if status == 0 else f"exit status {status}"


def note(config: Config, phase: str) -> gpu_phases.Note:
    """A function that writes down a row of results of this phase, at once."""

    def write(**row: Any) -> None:
        line = json.dumps({"phase": phase, **{k: v for k, v in row.items() if v is not None}}, default=str)
        with open(Path(config.folder) / "results.jsonl", "a") as file:
            file.write(line + "\n")
        print(" ", line[:160], flush=True)

    return write


# --- the report -------------------------------------------------------------------------------------------------------


def write_report(folder: Path) -> dict:
    """All rows by phase, and what is wrong, as report.json and report.html."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    report: dict = {"simulated": gpu_phases.is_simulated(), "wrong": []}
    for row in rows:
        phase, wrong = row.pop("phase"), row.get("wrong")
        report.setdefault(phase, []).append(row)
        if wrong:
            what = row.get("kernel") or row.get("what") or row.get("step") or row.get("tool") or phase
            report["wrong"].append(f"{what}: {wrong}")
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    (folder / "report.html").write_text(_page(report))
    return report


def _page(report: dict) -> str:
    title = "scratchnet on a GPU" + (", simulated: times mean nothing" if report["simulated"] else "")
    machine = "".join(f"<li>{html.escape(f'{k}: {v}')}" for row in report.get("machine", []) for k, v in row.items())
    wrong = "".join(f"<li>{html.escape(x)}" for x in report["wrong"]) or "<li>nothing is wrong"
    kernels = [
        (f"{row['kernel']} {row['shapes'][0]}", row["floor"] / row["seconds"], f"{row['seconds'] * 1e6:.1f} us")
        for row in report.get("kernels", [])
        if "floor" in row and "seconds" in row
    ]
    steps = [row for row in report.get("steps", []) if "seconds" in row]
    slowest = {job: max(x["seconds"] for x in steps if x["job"] == job) for job in {row["job"] for row in steps}}
    bars = [
        (f"{x['job']}: {x['step']}", x["seconds"] / slowest[x["job"]], f"{x['seconds'] * 1e6:.0f} us") for x in steps
    ]
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>body{{font:14px sans-serif}}</style>"
        f"<h1>{title}</h1><ul>{machine}</ul><h2>Wrong</h2><ul>{wrong}</ul>"
        f"<h2>Steps, of the slowest</h2>{_bars(bars)}<h2>Kernels, of the floor of this GPU</h2>{_bars(kernels)}"
    )


def _bars(rows: list[tuple[str, float, str]]) -> str:
    """Bars of a length from 0 to 1, with a text on the left and one on the right."""
    lines = [
        f'<text x="0" y="{18 * i + 14}">{html.escape(name[:60])}</text><rect x="420" y="{18 * i + 3}" '
        f'width="{max(300 * min(part, 1), 1):.0f}" height="12" fill="#4878a8"/>'
        f'<text x="{430 + 300 * min(part, 1):.0f}" y="{18 * i + 14}">{part:.0%}, {html.escape(text)}</text>'
        for i, (name, part, text) in enumerate(rows)
    ]
    return f'<svg width="900" height="{18 * len(rows) + 6}" font-size="12">{"".join(lines)}</svg>'


if __name__ == "__main__":
    run_script(main, Config)
