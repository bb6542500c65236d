"""Arrays that are drawn: shapes that fit together, layouts, domains, and every kind of number."""

import sys

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from sizes import SIZES

import scratchnet as sn
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


# --- words, types, ranges ---------------------------------------------------------------------------------------------


@given(arrays("bmk,bkn,m3", **SIZES))
def test_words_may_be_separated_by_commas_and_digits_are_lengths(inputs):
    a, b, c = inputs
    assert a.shape[2] == b.shape[1] and a.shape[0] == b.shape[0] and c.shape == (a.shape[1], 3)


@pytest.mark.parametrize("word", ["m-n", "mk;kn", "m<", "(m)", "**"])
def test_a_word_that_nobody_knows_is_refused(word):
    with pytest.raises(sn.ConfigError, match="word of shapes"):
        arrays(word)


@given(arrays("n", domain=lambda x: x * x + 1, **SIZES))
def test_a_domain_may_be_a_function(inputs):
    assert (inputs[0] >= 1).all() and inputs[0].dtype in (np.float32, np.float64)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8])
@given(data=st.data())
def test_integers_are_small_or_in_the_range_that_was_asked_for(dtype, data):
    (x,) = data.draw(arrays("mn", dtypes=[dtype], **SIZES))
    assert x.dtype == dtype and (x <= 9).all() and (x >= (0 if dtype is np.uint8 else -9)).all()
    (x,) = data.draw(arrays("mn", dtypes=[dtype], integers=(50, 60), **SIZES))
    assert ((x >= 50) & (x <= 60)).all()


def test_what_an_array_is_drawn_by_names_a_range_of_integers_and_lengths_shrink_to_one():
    options = {"domain": "real", "special": (), "integers": (50, 60)}
    for dtype, last in (("int64", "'int64', integers=(50, 60))"), ("float32", "'float32')")):
        assert strategies._recipe("real", 1, (2,), np.dtype(dtype), **options).endswith(last)
    lengths = {"n": 7, "m": 5}
    strategies._shrink(lengths, ["n", "m"], strategies.Content(sizes=(5, 7), max_elements=5))
    assert lengths == {"n": 5, "m": 1} or lengths == {"n": 1, "m": 5}


@given(arrays("mk,kn,mn", dtypes=[("float16", "float16", "float32")], **SIZES))
def test_each_word_may_have_a_type_of_its_own(inputs):
    assert [x.dtype for x in inputs] == [np.float16, np.float16, np.float32]


@given(arrays("mn", dtypes=[np.float16, np.complex64, np.complex128], **SIZES))
def test_half_precision_stays_finite_in_sums_and_products_and_complex_numbers_have_two_parts(inputs):
    (x,) = inputs
    assert np.isfinite(x).all()
    if x.dtype == np.float16:
        assert np.abs(x).max(initial=0) <= 16.2 and np.isfinite(x @ x.T).all()
    elif x.size > 8:
        assert x.imag.any()


@pytest.mark.parametrize(
    "options",
    [
        {"domain": ("real", "real")},
        {"dtypes": [("float32", "float32")]},
        {"integers": (5, 3)},
        {"integers": (1, 2, 3)},
        {"domain": "postive"},
        {"layouts": ("f",)},
    ],
)
def test_a_wrong_option_is_refused(options):
    with pytest.raises(sn.ScratchnetError, match="arrays: "):
        arrays("mn", **options)
    with pytest.raises(TypeError, match="dtpye"):
        arrays("mn", dtpye=np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, bool, np.complex64])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 4), (9, 9)])
def test_an_array_in_a_message_is_the_same_array_when_it_is_pasted(shape, dtype):
    x = np.asarray(strategies.drawn("wide", 3, shape, dtype))
    if x.dtype.kind == "f" and x.size > 4:
        x.flat[:4] = np.nan, -np.inf, -0.0, 1e-7
    text = strategies.written(x)
    if x.size > 64:
        assert text == f"<{x.dtype} {shape}>"
        return
    y = eval(text, {"np": np})
    assert y.dtype == x.dtype and y.shape == x.shape and y.tobytes() == x.tobytes()
