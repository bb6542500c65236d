"""Arrays that are drawn: shapes that fit together, layouts, domains, and every kind of number."""

import sys

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from sizes import SIZES

from scratchnet.testing import DOMAINS, EDGES, LAYOUTS, SPECIAL, arrays, strategies

X = np.random.default_rng(0).standard_normal((9, 17)).astype(np.float32)


@given(arrays("mk kn m<n Nk", **SIZES))
def test_letters_are_lengths_and_capitals_are_not_zero(inputs):
    a, b, index, c = inputs
    assert a.shape[1] == b.shape[0] == c.shape[1] and len(c) > 0
    assert len(index) == (a.shape[0] if b.shape[1] else 0)
    assert index.dtype == np.int64 and all(0 <= i < b.shape[1] for i in index)
    assert a.dtype == b.dtype == c.dtype and a.dtype in (np.float32, np.float64)


@given(arrays("* * *", **SIZES))
def test_stars_broadcast_together(inputs):
    assert np.broadcast_shapes(*[x.shape for x in inputs]) is not None


@pytest.mark.parametrize(
    "wanted",
    [
        lambda a, b: a.ndim == 0 < b.ndim,
        lambda a, b: a.ndim == b.ndim == 2 and a.shape[0] == 1 < b.shape[0] and b.shape[1] == 1 < a.shape[1],
        lambda a, b: a.size == 0,
        lambda a, b: a.shape == b.shape and a.size > 100,
        lambda a, b: np.isnan(a).any(),
        lambda a, b: np.isinf(a).any() and np.isfinite(b).all(),
        lambda a, b: len(np.unique(a)) < a.size / 4 and a.size > 8,  # ties
        lambda a, b: np.abs(a).max(initial=0) > 1e5,
    ],
)
def test_every_kind_of_input_is_drawn(wanted):
    once = settings(max_examples=2000, phases=[Phase.generate])
    assert find(arrays("* *", special=SPECIAL, max_elements=2**10), lambda x: wanted(*x), settings=once)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(operands=arrays("mnk", dtypes=(np.float32, np.float64, np.int64, bool), **SIZES))
def test_layouts_hold_the_same_values_in_other_memory(layout, operands):
    (x,) = operands
    y = LAYOUTS[layout](x)
    assert y.dtype == x.dtype and y.shape == x.shape
    assert not np.may_share_memory(x, y)
    if layout != "broadcast":
        np.testing.assert_array_equal(x, y)
    elif x.size:
        np.testing.assert_array_equal(y, np.stack([x[0]] * len(x)))


def test_layouts_are_what_they_are_called():
    y = {name: layout(X) for name, layout in LAYOUTS.items()}
    assert y["C"].flags.carray and y["offset"].flags.carray
    assert y["offset"].ctypes.data % 8 == 4
    assert y["readonly"].flags.c_contiguous and not y["readonly"].flags.writeable
    assert y["Fortran"].flags.f_contiguous and not y["Fortran"].flags.c_contiguous
    assert y["strided"].strides == (34 * 4 * 2, 8)
    assert y["reversed"].strides == (-17 * 4, -4)
    assert y["broadcast"].strides == (0, -4)
    assert not y["unaligned"].flags.aligned


INSIDE = {
    "real": lambda x: np.isfinite(x),
    "positive": lambda x: x > 0,
    "nonnegative": lambda x: x >= 0,
    "nonzero": lambda x: np.abs(x) >= 0.25,
    "unit": lambda x: (x >= 0) & (x <= 1),
    "bool": lambda x: (x == 0) | (x == 1),
}


@pytest.mark.parametrize("domain", DOMAINS)
@given(data=st.data())
def test_values_lie_in_their_domain(domain, data):
    (x,) = data.draw(arrays("mn", domain=domain, **SIZES))
    assert INSIDE[domain](x).all()


def test_sizes_lie_on_both_sides_of_every_tile_edge():
    assert all({n - 1, n, n + 1} <= set(EDGES) for n in (1, 8, 16, 32, 64, 128))


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis.strategies", None)
    with pytest.raises(ImportError, match="expected hypothesis; pip install hypothesis"):
        arrays("mn")


def test_sizes_of_arrays_keep_their_limit():
    @given(arrays("mnk *", sizes=(5, 300), max_elements=1000))
    def check(inputs):
        assert all(x.size <= 1000 for x in inputs)

    check()
    assert strategies.choice(0, 1) is not strategies.choice(False, True)
