"""`assert_matches_reference`, tested with kernels that are wrong in every way that we could think of."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from messages import one_line
from sizes import SIZES

import scratchnet as sn
from scratchnet.testing import LAYOUTS, arrays, assert_matches_reference

RNG = np.random.default_rng(0)
X = RNG.standard_normal((9, 17)).astype(np.float32)


def tripled(x):
    return x * 3


def fills(x, out):
    np.multiply(x, 3, out=out)


def returns(x):
    return x * x.dtype.type(3)


@pytest.mark.parametrize("kernel", [fills, returns])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_a_right_kernel_passes_whether_it_fills_or_returns(kernel, dtype):
    assert_matches_reference(kernel, tripled, [X.astype(dtype)], roundings=1, layouts=tuple(LAYOUTS))


def test_a_kernel_may_have_several_results():
    def divmod_(x, y, new_quotient, new_rest):
        np.divmod(x, y, out=(new_quotient, new_rest))

    assert_matches_reference(divmod_, np.divmod, [np.arange(9), np.full(9, 4)])
    assert_matches_reference(lambda x, y: divmod(x, y), np.divmod, [np.arange(9), np.full(9, 4)])


def test_a_reference_that_knows_no_long_double_is_asked_in_float64():
    from scipy.special import erf

    assert_matches_reference(lambda x: erf(x), erf, [X.astype(np.float64)], roundings=0)


calls = itertools.count()


def changes_its_input(x, out):
    fills(x, out)
    x.flat[:1] = 0


def skips_the_last_column(x, out):
    fills(x[:, :-1], out[:, :-1])


def works_in_groups_of_eight(x, out):
    n = x.shape[1] // 8 * 8
    fills(x[:, :n], out[:, :n])


def adds_to_what_was_there(x, out):
    out += 3 * x


def writes_before_its_output(x, out):
    fills(x, out)
    np.lib.stride_tricks.as_strided(out.ravel()[:1], (2,), (-out.itemsize,))[1] = 5


def writes_behind_its_output(x, out):
    fills(x, out)
    np.lib.stride_tricks.as_strided(out.ravel()[-1:], (2,))[1] = 5


def returns_its_input(x):
    x *= 1
    return x


def returns_a_view(x):
    return x[::-1][::-1]


def returns_float64(x):
    return x.astype(np.float64) * 3


def returns_another_shape(x):
    return (x * 3).ravel()


def returns_two(x):
    return x * 3, x * 3


def is_off_by_two_ulps(x, out):
    out[...] = np.nextafter(np.nextafter(x * 3, np.float32(np.inf)), np.float32(np.inf))


def is_off_in_one_element(x, out):
    fills(x, out)
    out[4, 5] *= 1 + 1e-6


def gives_nan(x, out):
    fills(x, out)
    out[4, 5] = np.nan


def gives_infinity(x, out):
    fills(x, out)
    out[4, 5] = np.inf


def forgets_strides(x):
    return x.ravel(order="K").reshape(x.shape) * 3


def alternates(x, out):
    fills(x, out)
    out[0, 0] += 1e-7 * (next(calls) % 2)


WRONG = {
    changes_its_input: "input 0 was changed",
    skips_the_last_column: r"element \(0, 16\): expected to be written, and the same twice, got nan and then 1.0",
    works_in_groups_of_eight: r"element \(0, 16\): expected to be written",
    adds_to_what_was_there: "expected to be written",
    writes_before_its_output: "nothing written beside",
    writes_behind_its_output: "nothing written beside",
    returns_its_input: "memory of its own",
    returns_a_view: "memory of its own",
    returns_float64: "expected float32",
    returns_another_shape: r"expected float32 of shape \(9, 17\), got float32 of \(153,\)",
    returns_two: "expected 1 results, got 2",
    is_off_by_two_ulps: "of 153 wrong",
    is_off_in_one_element: r"element \(4, 5\): expected .* within .*, got .*1 of 153 wrong",
    gives_nan: r"element \(4, 5\): expected .*, got nan",
    gives_infinity: r"element \(4, 5\): expected .*, got inf",
    forgets_strides: "layout 'Fortran'",
    alternates: "the same twice",
}


@pytest.mark.parametrize("kernel", WRONG, ids=lambda kernel: kernel.__name__)
def test_a_wrong_kernel_is_caught_and_the_message_says_how(kernel):
    layouts = ("C",) if kernel is not forgets_strides else ("C", "Fortran")
    with pytest.raises(sn.ContractError, match=WRONG[kernel]) as error:
        assert_matches_reference(kernel, tripled, [X], roundings=2, layouts=layouts)
    assert kernel.__name__ in one_line(error)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("right", [np.nan, np.inf, -np.inf, 1.0])
def test_nan_and_infinities_must_be_the_same(right, wrong):
    def constant(value):
        return lambda x: np.full_like(x, value)

    assert_matches_reference(constant(right), constant(right), [X])
    if not np.array_equal(right, wrong, equal_nan=True):
        with pytest.raises(sn.ContractError):
            assert_matches_reference(constant(wrong), constant(right), [X])


def test_a_result_beyond_the_largest_number_may_overflow_but_only_to_its_own_side():
    x = np.full(3, 3e38, np.float32)
    with np.errstate(over="ignore"):
        assert_matches_reference(returns, tripled, [x])
        with pytest.raises(sn.ContractError):
            assert_matches_reference(lambda x: -x * 3, tripled, [x])


def add_up(x, out):
    """One after the other: the worst order that a sum can take."""
    total = np.zeros(x.shape[0], x.dtype)
    for column in x.T:
        total += column
    out[...] = total


@given(arrays("mn", **SIZES))
def test_the_bound_of_a_sum_lets_every_order_pass(inputs):
    terms = inputs[0].shape[1]
    for kernel in (add_up, lambda x, out: add_up(x[:, ::-1], out), lambda x, out: np.sum(x, axis=1, out=out)):
        assert_matches_reference(kernel, lambda x: x.sum(axis=1), inputs, terms=terms)


def test_the_bound_of_a_sum_stops_a_sum_in_half_precision():
    def in_half(x, out):
        out[...] = x.astype(np.float16).sum(axis=1)

    with pytest.raises(sn.ContractError):
        assert_matches_reference(in_half, lambda x: x.sum(axis=1), [X], terms=17)


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_the_bound_is_highams_gamma_times_the_sum_of_absolute_values(n):
    x = RNG.standard_normal(n).astype(np.float32)
    u = np.finfo(np.float32).eps / 2
    bound = (n + 1) * u / (1 - (n + 1) * u) * np.abs(x.astype(np.float64)).sum()

    def off_by(share):
        return lambda x: np.float32(x.sum(dtype=np.float64) + share * bound)

    def total(x):
        return x.sum(keepdims=False)

    assert_matches_reference(off_by(0.9), total, [x], terms=n, roundings=2)
    with pytest.raises(sn.ContractError):
        assert_matches_reference(off_by(2.0), total, [x], terms=n, roundings=2)


# --- options ----------------------------------------------------------------------------------------------------------


def difference(x, y, out):
    """Right, unless both inputs are one array: then it leaves out as it was."""
    if x is not y:
        np.subtract(x, y, out=out)


def prefix_sums(x, out):
    """Right for an `out` of its own. In place it reads what it wrote."""
    out[:1] = x[:1]
    for i in range(1, len(x)):
        out[i] = x[i] + x[: i + 1].sum() - x[i]


def increments(x, out):
    np.add(x, x.dtype.type(1), out=out)


def test_a_kernel_that_is_wrong_for_one_array_as_two_inputs_is_found():
    with pytest.raises(sn.ContractError, match=r"one array for inputs 0 and 1.*expected to be written"):
        assert_matches_reference(difference, np.subtract, [X, X + 1], roundings=1)
    assert_matches_reference(difference, np.subtract, [X, X + 1], roundings=1, aliased=False)


def test_one_array_for_all_inputs_is_left_out_where_the_reference_has_no_finite_answer():
    def ratio(x, y, out):
        assert (y != 0).all()
        np.divide(x, y, out=out)

    assert_matches_reference(ratio, np.divide, [np.zeros(3, np.float32), np.ones(3, np.float32)], roundings=1)


def test_a_kernel_that_is_wrong_in_place_is_found_if_it_promises_that():
    x = np.arange(1, 9, dtype=np.float32)
    assert_matches_reference(increments, lambda x: x + 1, [x], inplace=0)
    assert_matches_reference(increments, lambda x: x + 1, [x], inplace=(0,), layouts=("readonly",))
    assert_matches_reference(prefix_sums, np.cumsum, [x], terms=8)
    with pytest.raises(sn.ContractError, match=r"in place.*element"):
        assert_matches_reference(prefix_sums, np.cumsum, [x], terms=8, inplace=0)
    for wrong in (1, (5,)):
        with pytest.raises(sn.ConfigError, match="inplace: expected inputs of"):
            assert_matches_reference(increments, lambda x: x + 1, [x], inplace=wrong)
    with pytest.raises(sn.ConfigError, match="inplace"):
        assert_matches_reference(returns, tripled, [x], inplace=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtoll": 1e-3}, "got 'rtoll'; write rtol"),
        ({"layout": ("C",)}, "write layouts"),
        ({"nthreads": (1,)}, "write threads"),
        ({"banana": 1}, "an option or a parameter of fills, got 'banana'; options are accumulate, aliased, atol"),
        ({"rtol": -1}, "rtol"),
        ({"rtol": "small"}, "rtol"),
        ({"atol": np.nan}, "atol"),
        ({"terms": 2.5}, "terms"),
        ({"layouts": ("c",)}, "layout"),
        ({"layouts": "C"}, "layouts"),
        ({"threads": 2}, "threads"),
        ({"threads": (0,)}, "threads"),
        ({"inplace": (-1,)}, "inplace"),
        ({"aliased": 1}, "aliased"),
        ({"out": "flaot32"}, "out"),
        ({"out": (np.float32, np.float32)}, "expected 1 dtypes, one a result"),
        ({"accumulate": "double precision"}, "accumulate"),
        ({"fills": "yes"}, "fills"),
        ({"inputs": X}, r"inputs: expected a list of arrays, got an array of float32 \(9, 17\); write \[x\]"),
    ],
)
def test_a_wrong_or_misspelt_option_is_refused_by_name(options, message):
    with pytest.raises(sn.ScratchnetError, match=message) as error:
        assert_matches_reference(fills, tripled, **{"inputs": [X], "roundings": 1, **options})
    assert not isinstance(error.value, sn.ContractError)
    one_line(error)


def test_parameters_of_the_kernel_are_handed_on():
    def scaled(x, out, factor=1.0):
        np.multiply(x, x.dtype.type(factor), out=out)

    assert_matches_reference(scaled, lambda x, factor: factor * x, [X], factor=0.5)
    with pytest.raises(sn.ConfigError, match="got 'factr'; write factor"):
        assert_matches_reference(scaled, lambda x, factor: factor * x, [X], factr=0.5)


def test_an_exception_of_the_kernel_or_the_reference_names_the_layout_and_the_inputs():
    def wants_order(x, out):
        if not x.flags.c_contiguous:
            raise ValueError("rows\nplease")
        fills(x, out)

    with pytest.raises(
        sn.ContractError, match=r"wants_order, layout 'Fortran', inputs float32\(9, 17\).*ValueError"
    ) as e:
        assert_matches_reference(wants_order, tripled, [X], roundings=1, layouts=("C", "Fortran"))
    one_line(e)
    assert isinstance(e.value.__cause__, ValueError)
    with pytest.raises(sn.ContractError, match="the reference raised ZeroDivisionError"):
        assert_matches_reference(fills, lambda x: 1 / 0, [X])


def test_results_of_mixed_inputs_have_the_wider_type_or_the_one_that_is_asked_for():
    half = X.astype(np.float16)
    assert_matches_reference(lambda x, y: x * y, np.multiply, [half, X], roundings=1)
    assert_matches_reference(lambda x: x.astype(np.float32) * 3, tripled, [half], roundings=1, out=np.float32)
    with pytest.raises(sn.ContractError, match="expected float16 of shape"):
        assert_matches_reference(lambda x: x.astype(np.float32) * 3, tripled, [half], roundings=1)
    assert_matches_reference(lambda x: np.abs(x), np.abs, [X.astype(np.complex64)])  # real from complex


def reproduced(error):
    (note,) = [n for n in error.value.__notes__ if n.startswith("to reproduce: ")]
    return note.removeprefix("to reproduce: ")


def test_a_failure_can_be_reproduced_by_pasting_a_line():
    from scratchnet import testing

    space = {**vars(testing), "np": np, "reference": tripled, "tripled": tripled, "increments": increments}
    found = []

    @settings(max_examples=40)
    @given(arrays("mn,n", sizes=(1, 2, 65), special=(np.nan, np.inf), dtypes=(np.float16, np.float32, np.int32)))
    def check(inputs):
        x = inputs[0]
        if x.size in (1, 65 * 65) and np.isfinite(x).all():
            with pytest.raises(sn.ContractError) as error:
                assert_matches_reference(increments, tripled, [x], roundings=1, layouts=("C",), atol=1e-9)
            with pytest.raises(sn.ContractError) as again:
                exec(reproduced(error), space)
            assert str(again.value) == str(error.value)
            found.append(x.size)

    check()
    assert set(found) == {1, 65 * 65}
