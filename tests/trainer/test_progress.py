"""Where a progress bar shows: in terminals and notebooks, and nowhere else."""

import io

import pytest

from scratchnet.trainer import progress


class Notebook(io.StringIO):
    """Stands for the stream of a kernel of Jupyter."""


Notebook.__module__ = "ipykernel.iostream"


@pytest.mark.parametrize(
    ("stream", "show", "is_shown"), [(Notebook, True, True), (Notebook, False, False), (io.StringIO, True, False)]
)
def test_a_bar_shows_in_a_notebook_and_not_in_a_file(stream, show, is_shown, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr", stream())
    with progress.progress_bar(0, 1, 0, 3, show) as bar:
        bar.update()
        assert bar.disable != is_shown
    assert ("epoch 1/1" in progress.sys.stderr.getvalue()) == is_shown
