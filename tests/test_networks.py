"""The networks of the jobs: the numbers of their formulas; made again from a saved file."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.errors import ConfigError, ShapeError
from scratchnet.networks import Recommender

PAIRS = np.array([[0, 1], [2, 0], [2, 1]])


def arrays(modules):
    return [module.weight.detach().numpy().astype(np.float64) for module in modules]


def test_matrix_factorisation_is_its_formula_and_training_adds_the_squares():
    model = Recommender(3, 2, factors=4, mean=3.5, penalty=0.1)
    for bias in model.biases:
        sn.nn.init.normal_(bias.weight)
    (p, q), (b, c) = arrays(model.factors), arrays(model.biases)
    u, i = PAIRS.T
    expected = (p[u] * q[i]).sum(1, keepdims=True) + b[u] + c[i] + 3.5
    squares = (p[u] ** 2).sum(1, keepdims=True) + (q[i] ** 2).sum(1, keepdims=True) + b[u] ** 2 + c[i] ** 2
    trained = model(PAIRS).detach().numpy()
    np.testing.assert_allclose(trained, np.hstack([expected, 0.1 * squares]), rtol=1e-5)
    np.testing.assert_allclose(model.eval()(PAIRS).detach().numpy(), expected, rtol=1e-6)


def test_towers_transform_the_factors():
    model = Recommender(3, 2, factors=4, hidden=[5]).eval()
    sides = zip(model.towers, model.factors, PAIRS.T, strict=True)
    p, q = (tower(factors(numbers)) for tower, factors, numbers in sides)
    np.testing.assert_allclose(
        model(PAIRS).detach().numpy(), (p * q).sum(axis=1, keepdims=True).detach().numpy(), rtol=1e-6
    )


def test_a_saved_recommender_predicts_from_names(tmp_path):
    (tmp_path / "r.csv").write_text("user,item,rating\nann,x,1\nbob,y,2\neve,x,5\n")
    data = sn.data.ratings_csv(tmp_path / "r.csv")
    model = Recommender(3, 2, 4, (5,), 2.5, 0.1)
    sn.save_model(tmp_path / "model", model, data, outputs="values")
    again = sn.load_model(tmp_path / "model")
    assert repr(again.model) == repr(model.eval())
    assert again.predict([["eve", "y"]]).tobytes() == model(np.array([[2, 1]])).detach().numpy().tobytes()


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="Recommender: users: expected"):
        Recommender(0, 2, 4)
    with pytest.raises(ShapeError, match=r"expected pairs .b, 2., got .3,."):
        Recommender(3, 2, 4)(PAIRS[:, 0])
