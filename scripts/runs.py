"""Lists, compares and plots the runs that `scratchnet.callbacks.Database` keeps.

python scripts/runs.py                          # all runs of runs.db, a line each
python scripts/runs.py 3f2a 91bc                # two of them, epoch by epoch, and in what their settings differ
python scripts/runs.py 3f2a 91bc --plot out.png
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratchnet.callbacks.tables import URL, public, read_runs, read_steps
from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script
from scratchnet.report import new_figure, save_figure

SHORT = 8  # letters of a run's number that are shown


@dataclass
class Config:
    """List, compare and plot runs."""

    runs: tuple[str, ...] = flag((), "the first letters of runs' numbers, or names; all unless given", is_word=True)
    url: str = flag(URL, "the database")
    metric: str = flag("val_accuracy", "what is compared and plotted; the training loss where a run has none")
    plot: str | None = flag(None, "image file for the metric by epoch and the loss by step")
    json: bool = flag(False, "print all that is known as JSON")


def chosen(runs: list[dict[str, Any]], words: tuple[str, ...]) -> list[dict[str, Any]]:
    """The runs that words name, in their order. Raises ConfigError where a word names none, or several by number."""
    found = []
    for word in words:
        named = [run for run in runs if run["name"] == word]
        numbered = [run for run in runs if run["run"].startswith(word)]
        if not named and len(numbered) != 1:
            raise ConfigError(f"runs: expected a name, or how one number begins, got {word!r}, as {len(numbered)} do")
        found += named or numbered
    return found or runs


def values_of(run: dict[str, Any], metric: str) -> tuple[str, list[Any]]:
    """The metric, or the training loss, and its value in each epoch."""
    name = metric if any(metric in record for record in run["epochs"]) else "train_loss"
    return name, [record.get(name) for record in run["epochs"]]


def label_of(run: dict[str, Any]) -> str:
    """What people call a run: its name, or that of its folder."""
    return run["name"] or Path(run["folder"] or run["run"][:SHORT]).name


def line_of(run: dict[str, Any], metric: str) -> str:
    name, values = values_of(run, metric)
    numbers = [value for value in values if value is not None]
    best = f"{name} {(max if 'accuracy' in name else min)(numbers):.4f}" if numbers else ""
    return f"{run['run'][:SHORT]}  {label_of(run):<16}  {run['status']:<8}  {len(values):>4} epochs  {best}"


def differences(runs: list[dict[str, Any]]) -> list[str]:
    """A line for each setting in which the runs differ."""
    configs = [json.loads(run["config"] or "{}") for run in runs]
    names = sorted({name for config in configs for name in config})
    rows = [(name, [config.get(name) for config in configs]) for name in names]
    return [f"{name}: {' | '.join(map(str, row))}" for name, row in rows if any(value != row[0] for value in row)]


def plot(runs: list[dict[str, Any]], config: Config) -> None:
    figure = new_figure("runs --plot", 9, 3.5)
    left, right = figure.subplots(1, 2)
    for run in runs:
        label = label_of(run)
        name, values = values_of(run, config.metric)
        left.plot([record["epoch"] for record in run["epochs"]], values, marker="o", markersize=3, label=label)
        left.set(title=name, xlabel="epoch")
        steps = read_steps(run["run"], config.url)
        right.plot(steps["step"], steps["loss"], linewidth=0.8, label=label)
    right.set(title="loss", xlabel="step", yscale="log")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False)
    save_figure(figure, config.plot)


def main(config: Config) -> None:
    runs = chosen(read_runs(config.url), config.runs)
    if config.json:
        json.dump(runs, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(line_of(run, config.metric) for run in runs) or f"no runs in {public(config.url)}")
    if config.runs and not config.json:
        print("\n".join(differences(runs)))
        columns = [values_of(run, config.metric)[1] for run in runs]
        for epoch in range(max(map(len, columns))):
            cells = [f"{c[epoch]:>10.4f}" if epoch < len(c) and c[epoch] is not None else " " * 10 for c in columns]
            print(f"epoch {epoch + 1:>4}  {'  '.join(cells)}")
    if config.plot:
        plot(runs, config)


if __name__ == "__main__":
    run_script(main, Config)
