"""Makes up the tiny data sets in scratchnet/data/tiny, on which the jobs run without a download: same seed, same bytes.

python scripts/make_tiny.py
"""

import csv
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "scratchnet" / "data" / "tiny"


def write(name: str, header: list[str], rows: list[list[object]]) -> None:
    with open(FOLDER / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def flowers(rng: np.random.Generator, n: int = 1500) -> None:
    """Three species by length, width, color and garden; one cell in twenty is missing."""
    kinds = {
        "lily": (4.0, 1.0, [0.7, 0.2, 0.1]),
        "rose": (6.0, 2.0, [0.1, 0.8, 0.1]),
        "tulip": (5.0, 3.0, [0.3, 0.3, 0.4]),
    }
    rows = []
    for _ in range(n):
        species = str(rng.choice(list(kinds)))
        length, width, colors = kinds[species]
        cells = [
            f"{rng.normal(length, 0.7):.2f}",
            f"{rng.normal(width, 0.5):.2f}",
            str(rng.choice(["white", "red", "yellow"], p=colors)),
            str(rng.choice(["north", "south"])),
        ]
        rows.append([*["" if rng.random() < 0.05 else cell for cell in cells], species])
    write("flowers.csv", ["length", "width", "color", "garden", "species"], rows)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    flowers(np.random.default_rng(0))
