"""Notebooks of PyTorch, each of another style, run after one change: `import torch` is `import scratchnet as torch`."""

import re
from pathlib import Path

import pytest

import scratchnet as sn

NOTEBOOKS = sorted((Path(__file__).parent / "programs" / "notebooks").glob("*.py"))
CHANGES = (
    (r"^import torch$", "import scratchnet as torch"),
    (r"^import torch\.", "import scratchnet."),
    (r"^from torch\b", "from scratchnet"),
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_after_its_imports_were_changed(path):
    source = path.read_text()
    for old, new in CHANGES:
        source = re.sub(old, new, source, flags=re.M)
    assert "import scratchnet as torch" in source
    try:
        exec(compile(source, str(path), "exec"), {"__name__": "__main__"})
    finally:
        sn.manual_seed(0)
