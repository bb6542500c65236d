"""The words of PyTorch's notebooks, by the table in helpers/vocabulary.py; docs/differences.md has its differences."""

import re
from pathlib import Path

import numpy as np
import pytest
from vocabulary import ELSEWHERE, ROWS

import scratchnet as sn
from scratchnet import functions
from scratchnet.testing import DOMAINS, gradcheck

pytestmark = pytest.mark.usefixtures("numpy_device")

PAGE = Path(__file__).parents[1] / "docs" / "differences.md"
CALLS = [(name, shapes) for name, row in ROWS.items() for shapes in row.shapes]


def drawn(row, shapes):
    """An array for each shape, of the row's domain; a tuple of tuples is several."""
    rng = np.random.default_rng(7)
    several = shapes if shapes and isinstance(shapes[0], tuple) else (shapes,)
    return [np.asarray(DOMAINS[row.domain](rng.standard_normal(shape))) for shape in several]


def parts(result):
    return result if isinstance(result, tuple) else (result,)


def arrays_of(result):
    return [np.asarray(part.detach() if isinstance(part, sn.Tensor) else part) for part in parts(result)]


@pytest.mark.parametrize(("name", "shapes"), CALLS)
def test_a_word_gives_what_its_oracle_gives(name, shapes):
    row = ROWS[name]
    arrays = drawn(row, shapes)
    before = [x.tobytes() for x in arrays]
    expected = parts(row.oracle(*arrays))
    for got, right in zip(arrays_of(row.call(*map(sn.Tensor, arrays))), expected, strict=True):
        assert got.shape == np.shape(right)
        assert got.dtype == np.asarray(right).dtype
        np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-14)
    assert [x.tobytes() for x in arrays] == before


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.smooth])
def test_the_gradient_of_a_word_matches_differences_twice(name):
    row = ROWS[name]

    def joined(*tensors):
        found = [t for t in parts(row.call(*tensors)) if t.dtype.kind == "f"]
        return found[0] if len(found) == 1 else sn.cat([t.reshape(-1) for t in found])

    arrays = [x + 0.5 if row.domain == "positive" else x for x in drawn(row, row.shapes[0])]  # no pole at hand
    gradcheck(joined, arrays, order=2, max_elements=0)


@pytest.mark.parametrize("name", ROWS)
def test_a_recorded_step_replays_a_word_or_refuses_it(name):
    row = ROWS[name]
    call = row.call  # not the row, whose oracle would be looked through, too
    step = sn.jit(lambda *given: call(*[sn.Tensor(x) for x in given]))
    first, *later = ([x + shift for x in drawn(row, row.shapes[0])] for shift in (0, 0.125, 0.25))
    if row.looks:
        with pytest.raises(sn.JitError):
            step(*first)
        return
    for arrays in (first, *later):
        for got, right in zip(arrays_of(step(*arrays)), parts(row.oracle(*arrays)), strict=True):
            np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-14)


AXES = "sum mean amax amin argmax argmin any all prod var std norm logsumexp softmax log_softmax cumsum cumprod argsort"


@pytest.mark.parametrize("name", AXES.split())
def test_a_number_takes_axis_0_and_its_last(name):
    t = sn.Tensor(2.5)
    for axis in (0, -1):
        assert getattr(t, name)(dim=axis).shape == getattr(t, name)(axis=axis).shape == ()
        with pytest.raises(sn.IndexOutOfRangeError, match=r"\[-1, 1\)"):
            getattr(t, name)(dim=1)
    assert t.max(0).values.item() == 2.5 and t.max(0).indices.item() == 0 and t.sort(-1).indices.item() == 0
    assert t.transpose(0, -1).item() == t.squeeze(0).item() == t.flatten()[0].item() == 2.5


@pytest.mark.parametrize("word", ["split", "chunk", "unbind"])
def test_a_number_has_no_parts(word):
    with pytest.raises(sn.ShapeError, match=f"{word}: expected at least one dimension"):
        getattr(sn.Tensor(2.5), word)(*[1] * (word != "unbind"))


def test_what_gather_takes_of_a_number_is_a_copy():
    t = sn.Tensor(2.5)
    got = t.gather(0, sn.Tensor(0))
    got.zero_()
    assert t.item() == 2.5


MATRIX = np.arange(6.0).reshape(2, 3)
WRONG = [
    (
        lambda: sn.Tensor(np.ones((2, 3, 4))).bmm(np.ones((1, 4, 2))),
        sn.ShapeError,
        "bmm: expected batches of one length",
    ),
    (lambda: sn.Tensor([1, -2]).bincount(), sn.DtypeError, "bincount: expected integers >= 0, got -2"),
    (lambda: sn.Tensor(MATRIX).T.view(6), sn.ShapeError, r"view: expected memory that lies in the order of \(6,\)"),
    (lambda: sn.Tensor(MATRIX).flatten(1, 0), sn.ShapeError, "flatten: expected start_dim <= end_dim, got 1 and 0"),
    (lambda: sn.Tensor(MATRIX).split([1, 2]), sn.ShapeError, "split: expected lengths whose sum is 2"),
    (lambda: sn.Tensor(MATRIX).split([3, -1]), sn.ShapeError, "split: expected lengths whose sum is 2"),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG)
def test_shapes_and_numbers_that_do_not_fit_are_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_what_a_word_means_in_its_other_forms():
    assert sn.Tensor([3.0, -4.0]).norm(1).item() == 7
    assert sn.Tensor(MATRIX).max(sn.Tensor(MATRIX[::-1].copy())).tolist() == [[3, 4, 5], [3, 4, 5]]
    values, indices = sn.Tensor(2.5).topk(1)
    assert values.item() == 2.5 and indices.item() == 0


def test_gather_refuses_an_index_that_is_longer_on_another_axis():
    for index in (np.zeros((3, 1), np.int64), np.zeros(2, np.int64)):
        with pytest.raises(sn.ShapeError, match=r"gather: expected an index no longer than \(2, 3\) but along 1, got"):
            sn.Tensor(np.zeros((2, 3))).gather(1, index)


def test_booleans_stay_booleans_where_they_are_masked():
    t = sn.Tensor([True, True])
    assert sn.Tensor(np.ones((2, 2), bool)).tril().tolist() == [[True, False], [True, True]]
    assert t.masked_fill([True, False], False).tolist() == [False, True]
    with pytest.raises(sn.DtypeError, match="masked_fill: expected a number for bool, got int64"):
        t.masked_fill([True, False], 2)


def test_both_words_for_one_argument_are_refused_and_so_is_a_mixture_of_two_meanings():
    t = sn.Tensor([[1.0, 2.0]])
    with pytest.raises(sn.ConfigError, match=r"sum: expected dim= or axis=, got both"):
        t.sum(dim=0, axis=0)
    with pytest.raises(sn.ConfigError, match=r"var: expected NumPy's words .* or PyTorch's .*, got axis, keepdim"):
        t.var(axis=0, keepdim=True)


def test_numpys_words_ask_for_numpys_meaning():
    x = np.array([[1.0, 4.0], [3.0, 3.0]])
    t = sn.Tensor(x)
    np.testing.assert_array_equal(t.max(axis=1).numpy(), x.max(axis=1))
    np.testing.assert_array_equal(t.max(1, keepdims=True).numpy(), x.max(1, keepdims=True))
    np.testing.assert_array_equal(t.sort(axis=0).numpy(), np.sort(x, axis=0))
    for name in ("var", "std"):
        assert getattr(t, name)(axis=None).item() == getattr(np, name)(x)
        assert getattr(t, name)().item() == getattr(t, name)(dim=(0, 1)).item() == getattr(np, name)(x, ddof=1)
        assert getattr(t, name)(unbiased=False).item() == getattr(t, name)(correction=0).item() == getattr(np, name)(x)
        assert getattr(np, name)(t).item() == getattr(np, name)(x)


@pytest.mark.parametrize("name", ["var", "std"])
def test_the_place_after_the_axis_says_whether_a_spread_is_unbiased_as_in_pytorch(name):
    x = np.array([[1.0, 4.0, 5.0], [3.0, 3.0, 9.0]])
    spread, right = getattr(sn.Tensor(x), name), getattr(np, name)
    for unbiased in (False, True):
        np.testing.assert_allclose(spread(1, unbiased).numpy(), right(x, 1, ddof=int(unbiased)), rtol=1e-12)
        kept = right(x, 1, ddof=int(unbiased), keepdims=True)
        np.testing.assert_allclose(spread(1, unbiased, True).numpy(), kept, rtol=1e-12)
        np.testing.assert_allclose(spread(unbiased).item(), right(x, ddof=int(unbiased)), rtol=1e-12)


def test_of_ties_the_first_takes_the_gradient_of_max_with_an_axis_and_all_share_that_of_amax():
    for f, expected in {
        "dim": (lambda x: x.max(dim=0).values, [1, 0, 0]),
        "amax": (lambda x: x.amax(0), [0.5, 0.5, 0]),
        "all": (lambda x: x.max(), [0.5, 0.5, 0]),
        "min": (lambda x: (-x).min(0).values, [-1, 0, 0]),
    }.values():
        x = sn.tensor([1.0, 1.0, 0.0], requires_grad=True)
        f(x).backward()
        assert x.grad.numpy().tolist() == expected


NAN, INF = np.nan, np.inf
AT_KINKS = [  # the page's table of gradients
    (sn.relu, [0.0, NAN, INF], [0, 0, 1]),
    (sn.abs, [0.0, NAN], [0, NAN]),
    (sn.norm, [0.0, 0.0], [0, 0]),
    (sn.std, [1.0, 1.0], [0, 0]),
    (lambda x: x.clamp(0, 1), [0.0, 1.0, 2.0], [1, 1, 0]),
    (lambda x: sn.maximum(x, 1.0), [1.0, NAN, INF], [0.5, 0, 1]),
    (sn.max, [1.0, 1.0, 0.0], [0.5, 0.5, 0]),
    (sn.max, [1.0, NAN], [NAN, NAN]),
    (lambda x: sn.logsumexp(x, 0), [INF, 1.0], [NAN, NAN]),
    (lambda x: x.topk(1).values, [2.0, 2.0], [1, 0]),
    (lambda x: x.cumprod(0), [0.0, 2.0, 3.0], [9, 0, 0]),
]


@pytest.mark.parametrize(("f", "x", "expected"), AT_KINKS)
def test_where_there_is_no_gradient_it_is_what_the_page_says(f, x, expected):
    x = sn.tensor(x, requires_grad=True)
    f(x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), expected)


@pytest.mark.parametrize("name", ["floor", "ceil", "round", "sign"])
def test_steps_have_no_record(name):
    assert not getattr(sn.tensor([0.5], requires_grad=True), name)().requires_grad


def test_a_pair_is_no_operand():
    t = sn.Tensor([[1.0, 2.0]])
    with pytest.raises(sn.DtypeError, match=r"take \.values or \.indices"):
        t - t.max(1)


def test_products_with_zeros_have_the_gradient_of_the_other_factors():
    for values, expected in (([0.0, 2.0, 3.0], [6, 0, 0]), ([0.0, 0.0, 3.0], [0, 0, 0]), ([2.0, 3.0, 4.0], [12, 8, 6])):
        x = sn.tensor(values, requires_grad=True)
        x.prod().backward()
        assert x.grad.numpy().tolist() == expected


EQUATIONS = {
    "ij->ji": [(3, 4)], "ii->i": [(3, 3)], "ii": [(3, 3)], "ij->": [(3, 4)], "i,j->ij": [(3,), (4,)],
    "ij,jk,kl->il": [(2, 3), (3, 4), (4, 2)], "bij,bjk->bik": [(2, 3, 4), (2, 4, 2)],
    "...ij,...jk->...ik": [(2, 3, 4), (2, 4, 2)], "bqhd,bkhd->bhqk": [(2, 3, 2, 4), (2, 5, 2, 4)],
    "i,i->": [(3,), (3,)],
    "ij,ij->i": [(3, 4), (3, 4)],
    "ij,k->j": [(3, 4), (2,)], "b...->...": [(2, 3, 4)], "iij->ij": [(3, 3, 2)], "ab,cd->abcd": [(2, 3), (1, 2)],
    "Zi,...i": [(2, 3), (2, 3)], "Zi,...i->...": [(2, 3), (2, 3)], "ZY,...->Z...Y": [(2, 3), (2, 3)],
    "...i,...i->...": [(2, 1, 3), (4, 3)], "i,e...i,...->...e": [(2,), (1, 3, 1, 2), (1, 4)],
}  # fmt: skip


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_is_numpys(equation):
    arrays = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(EQUATIONS[equation])]
    np.testing.assert_allclose(
        sn.einsum(equation, *arrays).numpy(), np.einsum(equation, *arrays), rtol=1e-12, atol=1e-13
    )
    gradcheck(lambda *tensors: sn.einsum(equation, *tensors), arrays, max_elements=0)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk", [(2, 3)]), ("ij->k", [(2, 3)]), ("ij", [(2,)]), ("ij,jk->ik", [(2, 3), (4, 2)]), ("i1", [(2, 3)]),
        ("\uac00i,...i", [(2, 3), (2, 3)]), ("...i,...i->...", [(2, 3), (4, 3)]),
    ],
)  # fmt: skip
def test_an_equation_that_does_not_fit_is_refused_in_a_line(equation, shapes):
    with pytest.raises(sn.ShapeError, match="einsum: expected"):
        sn.einsum(equation, *[np.ones(shape) for shape in shapes])


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_word_has_a_row_in_the_table_or_stands_elsewhere():
    words = {word for names in ELSEWHERE for word in names.split()}
    public = {*functions.__all__, *sn.constructors.__all__, *sn.dtypes.__all__}
    assert public - ROWS.keys() - words == set()
    assert [word for word in ROWS.keys() | words if not hasattr(sn, word)] == []


def test_the_page_has_the_differences_of_the_table():
    table = {name: (row.torch, row.numpy) for name, row in ROWS.items()} | ELSEWHERE
    expected = [
        f"| {', '.join(f'`{word}`' for word in name.split())} | {torch or 'same'} | {numpy or 'same'} |"
        for name, (torch, numpy) in table.items()
        if torch or numpy
    ]
    found = re.findall(r"^\| `.*\|$", re.split("## Word by word|## Left out", PAGE.read_text())[1], re.M)
    assert found == expected
