"""Makes up the tiny data sets in scratchnet/data/tiny, on which the jobs run without a download: same seed, same bytes.

python scripts/make_tiny.py
"""

import csv
from pathlib import Path

import numpy as np

from scratchnet.data.files.series import log_mel

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


def sentences(rng: np.random.Generator, n: int = 800) -> None:
    """Opinions of films, food and weather; "not" turns a word into its opposite, so that the order of words counts."""
    things = ["film", "story", "actor", "soup", "bread", "dinner", "morning", "summer", "rain"]
    words = {1: ["good", "great", "lovely", "fine", "superb"], 0: ["bad", "awful", "dull", "poor", "boring"]}
    rows = []
    for _ in range(n):
        label, denied = int(rng.integers(2)), rng.random() < 0.25
        word = str(rng.choice(words[label ^ int(denied)]))
        start = rng.choice(["the", "this", "that", "our"])
        middle = rng.choice(["was", "is", "seemed", "felt"])
        rest = rng.choice(["", " today", " i think", " to me", " as always", " they say"])
        rows.append([f"{start} {rng.choice(things)} {middle} {'not ' * denied}{word}{rest}", ["no", "yes"][label]])
    write("sentences.csv", ["text", "label"], rows)


VOWELS = {
    "a": (850, 1610, 2850),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (500, 900, 2400),
    "u": (300, 870, 2240),
}


def vowels(rng: np.random.Generator, part: str, n: int, rate: int = 8000) -> None:
    """Synthetic vowels as log-mel features: harmonics of a pitch, each as loud as three formants make it."""
    lines = []
    for i in range(n):
        name = list(VOWELS)[i % len(VOWELS)]
        pitch, size = rng.uniform(90, 250), rng.uniform(0.85, 1.15)  # of the voice, and of its vocal tract
        seconds = np.arange(int(rate * rng.uniform(0.08, 0.18))) / rate
        tones = np.arange(1, int(rate / 2 / pitch) + 1)[:, None] * pitch
        gains = sum(1 / (1 + ((tones - size * formant) / 80) ** 2) for formant in VOWELS[name])
        wave = (gains * np.sin(2 * np.pi * tones * seconds + rng.uniform(0, 6, tones.shape))).sum(axis=0)
        features = log_mel(wave + rng.normal(0, 0.3, len(wave)), rate, 8)
        lines.append(":".join([*(",".join(f"{x:.1f}" for x in row) for row in features), name]))
    head = ["@problemName vowels", "@timeStamps false", f"@classLabel true {' '.join(VOWELS)}", "@data"]
    (FOLDER / f"vowels_{part}.ts").write_text("\n".join([*head, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    flowers(np.random.default_rng(0))
    ratings(np.random.default_rng(1))
    vowels(np.random.default_rng(2), "TRAIN", 150)
    vowels(np.random.default_rng(3), "TEST", 75)
    sentences(np.random.default_rng(4))
