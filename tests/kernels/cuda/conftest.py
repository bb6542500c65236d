"""Tests of the cuda table: with NUMBA_ENABLE_CUDASIM=1 those that run kernels, without it those that compile."""

import importlib.util
from pathlib import Path

import pytest
from sizes import OPENCL, SIMULATED

from scratchnet.data import read_idx, write_idx

IMAGES = Path(__file__).parents[3] / "scratchnet" / "data" / "fashion_mnist_mini"

NEEDS = {
    "simulated": (SIMULATED, "set NUMBA_ENABLE_CUDASIM=1"),
    "compiled": (
        not SIMULATED and not OPENCL and importlib.util.find_spec("numba_cuda") is not None,
        "needs numba-cuda, not simulated",
    ),
}


def pytest_collection_modifyitems(items):
    for item in items:
        need = getattr(item.module, "NEEDS", None)
        if need and not NEEDS[need][0]:
            item.add_marker(pytest.mark.skip(reason=NEEDS[need][1]))


@pytest.fixture
def few_images(tmp_path):
    """few_images(n): a folder in MNIST format with the first n images to train with, and 4 to test."""

    def make(n):
        folder = tmp_path / "small"
        folder.mkdir()
        for part, count in (("train", n), ("t10k", 4)):
            for kind in ("images-idx3", "labels-idx1"):
                write_idx(folder / f"{part}-{kind}-ubyte", read_idx(IMAGES / f"{part}-{kind}-ubyte.gz")[:count])
        return str(folder)

    return make
