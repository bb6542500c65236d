"""The four versions of docs/matmul.md: each is right around the edges of its blocks, and the page shows their code."""

from itertools import product

import matmul
import pages
import pytest

from scratchnet.native.compile import JIT_ENABLED

EDGES = (1, matmul.ROWS, matmul.ROWS + 1, matmul.LANES - 1, matmul.WIDTH, matmul.WIDTH + 1)
SHAPES = list(product(EDGES, (1, 7), EDGES))
LARGE = [
    (matmul.M_BLOCK + 1, 65, 513),  # two blocks of rows; two blocks of the version `blocked`, both ways
    (3, matmul.K_BLOCK + 1, matmul.WIDE + 1),  # two blocks of k, two panels
]


@pytest.mark.parametrize("name", matmul.VERSIONS)
def test_a_version_equals_numpy_within_the_bound(name):
    for shape in SHAPES + LARGE if JIT_ENABLED else SHAPES[::5]:
        assert matmul.errors(matmul.VERSIONS[name], *shape) <= 1, shape


def test_the_page_shows_the_code_that_runs():
    source = (pages.ROOT / "scripts" / "bench" / "matmul.py").read_text()
    shown = [block.text for block in pages.blocks((pages.ROOT / "docs" / "matmul.md").read_text())]
    assert [text for text in shown if text.startswith("@jit") and f"\n{text}" not in source] == []
    assert sum(text.startswith("@jit") for text in shown) == 5
