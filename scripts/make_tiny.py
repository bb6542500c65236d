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


def ratings(rng: np.random.Generator, users: int = 120, items: int = 60, n: int = 3000) -> None:
    """From 1 to 5 by two tastes of each user, as far as an item has them; nobody rates an item twice."""
    tastes, traits = rng.normal(size=(users, 2)), rng.normal(size=(items, 2))
    wishes = 3.4 + 0.8 * (tastes @ traits.T) + rng.normal(0, 0.4, items) + rng.normal(0, 0.3, (users, items))
    pairs = rng.choice(users * items, n, replace=False)
    rows = [[k // items + 1, k % items + 1, int(np.clip(np.rint(wishes.flat[k]), 1, 5))] for k in pairs.tolist()]
    write("ratings.csv", ["userId", "movieId", "rating"], rows)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    flowers(np.random.default_rng(0))
    ratings(np.random.default_rng(1))
