"""How products are cut may change at any time, and changes nothing but their speed; what a search finds is kept."""

import itertools
import os

import numpy as np
import pytest

from scratchnet import errors
from scratchnet.kernels.cpu import gemm, gemm_tuning
from scratchnet.kernels.cpu.gemm_cuts import MOST_M_BLOCK, NEVER, ROWS, Cuts, get_cuts, set_cuts
from scratchnet.native.cache import writable_folder
from scratchnet.native.compile import JIT_ENABLED, MAX_THREADS, compile_stats, get_num_threads, set_num_threads

TUNINGS = (
    Cuts(72, 1, 1, 0, 0),  # small blocks, all is packed, nothing is computed at once
    Cuts(MOST_M_BLOCK, NEVER, NEVER, NEVER, NEVER),  # large blocks, nothing is packed, all is computed at once
    Cuts(144, 256, 160, 1 << 20, 1 << 23),
    *gemm_tuning.STARTS.values(),
)
SHAPES = [(64, 64, 64), (150, 70, 100), (33, 40, 130)]
if JIT_ENABLED:
    SHAPES += [(400, 1100, 60), (400, 260, 300), (500, 9, 12), (3, 900, 700)]


@pytest.fixture(autouse=True)
def as_before():
    cuts, threads = get_cuts(), get_num_threads()
    yield
    set_cuts(cuts)
    set_num_threads(threads)


@pytest.mark.threads
@pytest.mark.parametrize("transposed", [*itertools.product([False, True], repeat=2)])
def test_bits_depend_neither_on_the_tuning_nor_on_threads(transposed):
    multiply, rng = gemm.at_once(gemm.matmul), np.random.default_rng(0)
    for m, k, n in SHAPES:
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
        a, b = (np.ascontiguousarray(x.T) if turned else x for x, turned in zip((a, b), transposed, strict=True))
        results = set()
        for cuts, threads in itertools.product(TUNINGS, {1, MAX_THREADS}):
            set_cuts(cuts)
            set_num_threads(threads)
            out = np.full((m, n), np.nan, np.float32)
            multiply(a, b, out, *transposed)
            results.add(out.tobytes())
        assert len(results) == 1, (m, k, n)
    compiled = compile_stats().compiled
    set_cuts(Cuts(216, 7, 7, 7, 7))
    multiply(a, b, out, *transposed)
    assert compile_stats().compiled == compiled and out.tobytes() in results


def test_a_start_is_one_that_the_memory_has_room_for():
    for cuts in gemm_tuning.STARTS.values():
        assert cuts.m_block <= MOST_M_BLOCK and cuts.m_block % ROWS == 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gemm_tuning, "writable_folder", lambda: tmp_path / "kernels")
    monkeypatch.delenv(gemm_tuning.VARIABLE, raising=False)
    return tmp_path


def test_what_is_kept_is_what_later_processes_load(folder, monkeypatch):
    best = Cuts(216, NEVER, 77, 78, 79)
    file = gemm_tuning.keep(best)
    assert file.parent == folder and list(folder.iterdir()) == [file]
    gemm_tuning.load()
    assert get_cuts() == best and "pack_b_rows 77" in gemm_tuning.describe() and "measured" in gemm_tuning.describe()
    monkeypatch.setenv(gemm_tuning.VARIABLE, "off")
    gemm_tuning.load()
    assert get_cuts() == gemm_tuning.start() and "the start" in gemm_tuning.describe()
    monkeypatch.setenv(gemm_tuning.VARIABLE, "maybe")
    with pytest.raises(errors.ConfigError, match=r"SCRATCHNET_TUNING.*got 'maybe'"):
        gemm_tuning.load()


OTHERS = '"pack_a_columns": 1, "pack_b_rows": 1, "small_product": 1, "serial_product": 1'
WHOLE = f'{{"m_block": 216, {OTHERS}}}'
DAMAGED = ["", "[1]", '{"m_block": 144}', "{", "[" * 60_000, WHOLE + " " * gemm_tuning.LARGEST] + [
    f'{{"m_block": {rows}, {OTHERS}}}' for rows in ("0", "100", "432", "-72", "72.0", "true", '"72"')
]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:20])
def test_a_file_that_no_search_wrote_is_not_used(folder, text):
    gemm_tuning.kept_in().write_text(text)
    gemm_tuning.load()
    assert get_cuts() == gemm_tuning.start() and f"{gemm_tuning.kept_in()} is not used" in gemm_tuning.describe()


def test_what_is_no_file_is_not_waited_for(folder):
    os.mkfifo(gemm_tuning.kept_in())
    gemm_tuning.load()
    assert get_cuts() == gemm_tuning.start() and "is not used" in gemm_tuning.describe()


def test_without_a_cache_folder_there_is_the_start(monkeypatch):
    monkeypatch.setattr(gemm_tuning, "writable_folder", lambda: None)
    assert gemm_tuning.keep(Cuts(216, 1, 1, 1, 1)) is None
    gemm_tuning.load()
    assert get_cuts() == gemm_tuning.start()


def test_the_search_takes_what_is_faster_and_leaves_all_as_it_was(monkeypatch):
    before, threads, said = get_cuts(), get_num_threads(), []
    prefers = {"m_block": 216, "pack_b_rows": 160}

    def speedup(products, cuts, other):
        better = [name for name, value in prefers.items() if getattr(cuts, name) == value != getattr(other, name)]
        return 1.2 if better else 1.01

    monkeypatch.setattr(gemm_tuning, "speedup", speedup)
    best = gemm_tuning.search(said.append)
    assert best == before._replace(**prefers) and len(said) > 5
    assert get_cuts() == before and get_num_threads() == threads


def test_of_two_ways_the_faster_is_found(monkeypatch):
    """By the clock, but with products that take as long as the cuts say."""
    import time

    products = [lambda: time.sleep(1e-6 * get_cuts().m_block)]
    slow, fast = get_cuts()._replace(m_block=4000), get_cuts()._replace(m_block=100)
    assert gemm_tuning.speedup(products, fast, slow) > 1 > gemm_tuning.speedup(products, slow, fast)


def test_the_folder_of_kernels_is_not_where_tunings_are_kept():
    """It is named after the sources, so what was measured would be lost with each version."""
    if (folder := writable_folder()) is not None:
        assert gemm_tuning.kept_in().parent == folder.parent
