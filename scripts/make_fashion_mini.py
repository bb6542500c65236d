"""Rebuild the embedded data set from the full Fashion-MNIST: the first 600 training and 100 test images of each class.

    python scripts/make_fashion_mini.py [FOLDER_OF_THE_FULL_SET] [--out FOLDER]

Same input and same zlib, same bytes. Images stay in their original order.
"""

import argparse
from pathlib import Path

import numpy as np

from scratchnet.data import read_idx, write_idx
from scratchnet.data.sources import DEBIAN_FOLDER, EMBEDDED_FOLDER

IMAGES_A_CLASS = {"train": 600, "t10k": 100}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=DEBIAN_FOLDER, help=f"default: {DEBIAN_FOLDER}")
    parser.add_argument("--out", type=Path, default=EMBEDDED_FOLDER, help="default: inside the package")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    for part, count in IMAGES_A_CLASS.items():
        images = read_idx(arguments.source / f"{part}-images-idx3-ubyte.gz")
        labels = read_idx(arguments.source / f"{part}-labels-idx1-ubyte.gz")
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))
        for kind, array in {"images-idx3": images, "labels-idx1": labels}.items():
            path = arguments.out / f"{part}-{kind}-ubyte.gz"
            write_idx(path, array[chosen])
            print(f"{path}: {len(chosen)} samples, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
