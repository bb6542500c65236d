"""Pictures: a file of an image, or one line that says what is missing."""

import sys

import numpy as np
import pytest
from messages import refused

from scratchnet.errors import ConfigError, DtypeError, ShapeError
from scratchnet.report import plot_confusion


def test_a_confusion_matrix_is_a_picture_with_a_cell_for_each_pair(tmp_path):
    image = pytest.importorskip("PIL.Image")
    plot_confusion([[5, 1], [0, 0]], tmp_path / "matrix.png", ["cat", "dog"])
    picture = np.asarray(image.open(tmp_path / "matrix.png").convert("L"))
    assert picture.min() < 50 and picture.max() == 255


@pytest.mark.parametrize(
    ("counts", "classes", "error", "message"),
    [
        ([[1, 2]], None, ShapeError, "counts (classes, classes), got (1, 2)"),
        (np.empty((0, 0), int), None, ShapeError, "got (0, 0)"),
        ([[1.5]], None, DtypeError, "expected numbers"),
        ([[1]], ["a", "b"], ShapeError, "expected 1 names of classes, got 2"),
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path, counts, classes, error, message):
    assert message in refused(error, lambda: plot_confusion(counts, tmp_path / "x.png", classes))


def test_without_matplotlib_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in refused(ConfigError, lambda: plot_confusion([[1]], tmp_path / "x.png"))
