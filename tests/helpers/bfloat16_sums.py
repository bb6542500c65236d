"""What the tests of pairs and of tiles share: sums of packed factors, by machine code and by its twin."""

import numpy as np

from scratchnet.kernels.cpu.pairs import WORDS, _pack_tiles
from scratchnet.native.llvm import Operand
from scratchnet.testing.oracles import half

nearest_bfloat16 = half.bfloat16  # by exponents, where the kernels look at bits


def check_sums(compiled, twin, kind, rows, columns, add):
    """Both have the same bits, and write no other elements than theirs."""
    rng = np.random.default_rng(rows + 2 * columns)
    scale = {"normal": 1.0, "wide": 10.0 ** rng.integers(-12, 12, (2, 3, 512)), "subnormal": 1e-19}[kind]
    factors = (rng.standard_normal((2, 3, 512)) * scale).astype(np.float32)
    words = [np.zeros(2 * 3 * WORDS, np.float32) for _ in range(2)]
    for side, target in enumerate(words):
        blocks = np.ascontiguousarray(np.roll(factors, side, axis=2)).reshape(-1)
        _pack_tiles(Operand(blocks, 0, 32, 512), Operand(target, 0, 16, WORDS), 6, 0, side)
    start = rng.standard_normal((32, 40)).astype(np.float32)
    results = []
    for function in (compiled, twin):
        out, panel = start.copy(), 3 * WORDS
        left, right = (Operand(target, 0, 0, panel) for target in words)
        function(left, right, Operand(out, 0, 40, 0), 3, rows, columns, add)
        results.append(out)
    assert results[0].tobytes() == results[1].tobytes()
    untouched = np.ones(start.shape, bool)
    untouched[: 16 * rows, : 16 * columns] = False
    np.testing.assert_array_equal(results[0][untouched], start[untouched])
