"""The tunable numbers of all kernels. `current()` gives those of production; tests and the simulator use tiny ones."""

from contextvars import ContextVar
from dataclasses import dataclass, replace

from .compile import PYTHON, SIMULATED


@dataclass(frozen=True)
class Tile:
    """How a matrix product is cut: a block computes rows x columns of the result, a thread own_rows x own_columns of
    them, both `depth` terms of the sums at a time.
    """

    rows: int
    columns: int
    depth: int
    own_rows: int
    own_columns: int

    @property
    def threads(self) -> int:
        return self.rows * self.columns // (self.own_rows * self.own_columns)


@dataclass(frozen=True)
class Tuning:
    """threads: of a block. blocks: most blocks of a grid, whose threads stride over larger arrays.

    warp: threads that run in step; shuffles: do they exchange values without shared memory?
    chunk: elements that one block folds; it alone decides the order of a sum.
    columns: side by side in a block that folds along another axis than the last.
    small_rows: one warp takes a row of up to this length.
    tiles, tiles_of_8_bytes: of matrix products in float32 and in other dtypes, the largest first.
    tensor_tiles: of those by tensor cores; a warp computes 8 own_rows x 4 own_columns, pieces of 16 x 8.
    windows: of convolutions; the first one that is less than half empty along the filters is taken, in
    dtypes of 8 bytes from the second one on. tensor_windows: the same by tensor cores.
    multiprocessors: fewer blocks than this leave part of the GPU idle, so a smaller tile is taken.
    few, few_of_8_bytes, groups, few_terms: of products of few tiles, see gemm_few.py: the tile, the groups of threads
    that share a sum, and the longest sum.
    """

    threads: int = 256
    blocks: int = 16384
    warp: int = 32
    shuffles: bool = not PYTHON
    chunk: int = 8192
    columns: int = 8  # 32 bytes side by side, which is what memory hands out at least
    small_rows: int = 256
    tiles: tuple[Tile, ...] = (Tile(128, 128, 8, 8, 8), Tile(64, 64, 16, 4, 4), Tile(32, 32, 32, 4, 4))
    tiles_of_8_bytes: tuple[Tile, ...] = (Tile(64, 64, 8, 4, 4), Tile(32, 32, 16, 4, 2))
    tensor_tiles: tuple[Tile, ...] = (Tile(128, 64, 16, 8, 8), Tile(64, 64, 16, 4, 8), Tile(32, 32, 32, 2, 4))
    windows: tuple[Tile, ...] = tuple(Tile(*x, 4, 4) for x in ((64, 64, 16), (32, 64, 8), (16, 128, 8), (8, 128, 8)))
    tensor_windows: tuple[Tile, ...] = (Tile(128, 64, 16, 4, 8), Tile(64, 64, 16, 4, 8), Tile(32, 64, 16, 4, 4))
    multiprocessors: int = 108
    few: Tile = Tile(16, 16, 16, 4, 4)
    few_of_8_bytes: Tile = Tile(16, 16, 8, 4, 4)
    groups: int = 8
    few_terms: int = 2048


PRODUCTION = Tuning()
# For tests: arrays of a few elements cross every edge of every block, warp, chunk and tile.
TINY = Tuning(
    threads=8, blocks=3, warp=4, shuffles=True, chunk=16, columns=2, small_rows=4, multiprocessors=2,
    tiles=(Tile(8, 16, 4, 4, 8), Tile(8, 8, 4, 4, 4)), tiles_of_8_bytes=(Tile(8, 8, 4, 4, 4), Tile(4, 4, 2, 2, 2)),
    few=Tile(8, 8, 4, 4, 4), few_of_8_bytes=Tile(4, 4, 2, 2, 2), groups=2, few_terms=12,
    tensor_tiles=(Tile(32, 16, 16, 4, 2), Tile(16, 8, 32, 2, 2)),
    windows=(Tile(8, 8, 4, 4, 4), Tile(4, 8, 4, 4, 4)),
    tensor_windows=(Tile(32, 16, 16, 4, 2), Tile(16, 8, 16, 2, 2)),
)  # fmt: skip
SIMULATED_SMALL = replace(  # for Numba's simulator, in which each thread costs as much as a call of Python
    TINY, threads=4, blocks=2, warp=2, shuffles=False, chunk=8, small_rows=2,
    tiles=(Tile(4, 8, 4, 4, 4),), tiles_of_8_bytes=(Tile(4, 4, 2, 2, 2),),
    few=Tile(4, 8, 4, 4, 4), few_terms=6, tensor_tiles=(Tile(16, 8, 16, 2, 2),),
    windows=(Tile(4, 8, 4, 4, 4),) * 2, tensor_windows=(Tile(16, 8, 16, 2, 2),),
)  # fmt: skip
_current: ContextVar[Tuning] = ContextVar("tuning", default=SIMULATED_SMALL if SIMULATED else PRODUCTION)


def current() -> Tuning:
    """The numbers for the next launch."""
    return _current.get()


def use(tuning: Tuning):
    """A context in which `tuning` holds."""
    return _Using(tuning)


class _Using:
    def __init__(self, tuning: Tuning):
        self._tuning = tuning

    def __enter__(self) -> Tuning:
        self._token = _current.set(self._tuning)
        return self._tuning

    def __exit__(self, *exc_info) -> None:
        _current.reset(self._token)
