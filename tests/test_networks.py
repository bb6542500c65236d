"""The networks of the jobs: the numbers of their formulas; made again from a saved file."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.errors import ConfigError, ShapeError
from scratchnet.networks import Recommender, TextTransformer

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


# --- TextTransformer --------------------------------------------------------------------------------------------------

WORDS = np.array([[5, 2, 3, 0, 0], [1, 1, 4, 2, 3], [2, 5, 3, 0, 0]])


def test_nothing_looks_at_what_fills_a_text_up_and_the_order_of_words_counts():
    model = TextTransformer(6, 3, width=8, heads=2).eval()
    logits = model(WORDS).detach().numpy()
    np.testing.assert_allclose(model(WORDS[:1, :3]).detach().numpy(), logits[:1], rtol=1e-4, atol=1e-5)
    assert abs(logits[0] - logits[2]).max() > 1e-3
    assert np.isfinite(model(np.zeros((1, 4), np.int64)).detach().numpy()).all()


def test_a_transformer_learns_what_no_mean_of_words_can(tmp_path):
    rng = np.random.default_rng(0)
    words = rng.permuted(np.tile([1, 2, 3, 3], (256, 1)), axis=1)
    labels = (words.argmin(axis=1) < (words == 2).argmax(axis=1)).astype(np.int64)  # is 1 before 2?
    model = TextTransformer(4, 2, width=16, heads=2, layers=1, dropout=0.0)
    trainer = sn.Trainer(model, sn.optim.Adam(model.parameters(), 0.01), sn.nn.CrossEntropyLoss(), progress=False)
    loader = sn.data.DataLoader(sn.data.TensorDataset(words, labels), 32, shuffle=True)
    trainer.fit(loader, epochs=12)
    assert trainer.evaluate(loader)["accuracy"] > 0.95
    sn.save_model(tmp_path / "model", model)
    assert sn.load_model(tmp_path / "model").outputs(words).tobytes() == trainer.predict(words).tobytes()


def test_sizes_of_a_transformer_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="TextTransformer: classes: expected"):
        TextTransformer(6, 0)
    with pytest.raises(ShapeError, match=r"expected numbers of words .b, steps., got .5,."):
        TextTransformer(6, 2)(WORDS[0])
