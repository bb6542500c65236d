"""The command: `python -m scratchnet COMMAND ...` runs a script of scripts/, the very file that one reads."""

from __future__ import annotations

import sys
import types
from pathlib import Path

COMMANDS = {  # the script, and what it does
    "train": ("train.py", "trains a network on images of 28x28 pixels"),
    "train-images": ("train_images.py", "trains a convolutional network on images, or folders of them"),
    "train-table": ("train_table.py", "trains a network on a table: classes or numbers of a CSV or Parquet file"),
    "train-recommend": ("train_recommend.py", "trains a recommender on ratings: matrix factorisation, or two towers"),
    "train-speech": ("train_speech.py", "trains a network on speech: series in .ts files, folders of WAV files"),
    "train-text": ("train_text.py", "trains a network on sentences: an embedding bag, or a small transformer"),
    "predict": ("predict.py", "labels of images, rows or sentences, by a saved model"),
    "runs": ("runs.py", "lists, compares and plots the runs of a database"),
    "doctor": ("doctor.py", "tries all that a run needs on this machine, and says what is missing"),
    "tune": ("tune.py", "measures how products are cut best on this machine, and keeps it"),
    "kubernetes": ("manifests.py", "prints manifests for Kubernetes, by which pods become the ranks of a job"),
    "exercises": ("exercises/exercises.py", "the exercises of the book: start one, check it, get a hint"),
    "bench": ("bench/bench.py", "measures steps and kernels beside what is installed"),
}
FOLDERS = Path(__file__).parent / "scripts", Path(__file__).parents[1] / "scripts"  # of a wheel, of a checkout


def main() -> None:
    """Runs the script named by the first word of the command line, with the rest of it."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: scratchnet COMMAND [flags], of which each has --help\n")
        print("\n".join(f"  {command:<12} {does}" for command, (_, does) in COMMANDS.items()))
        return
    if name not in COMMANDS:
        print(f"scratchnet: expected a command, one of {', '.join(COMMANDS)}, got {name!r}", file=sys.stderr)
        sys.exit(2)
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[-1])
    script = folder / COMMANDS[name][0]
    sys.argv = [f"scratchnet {name}", *rest]
    sys.path.insert(0, str(script.parent))
    program = types.ModuleType("__main__")
    program.__file__ = str(script)
    sys.modules["__main__"] = program  # not by runpy, which would name the script in every message
    exec(compile(script.read_bytes(), script, "exec"), vars(program))


if __name__ == "__main__":
    main()
