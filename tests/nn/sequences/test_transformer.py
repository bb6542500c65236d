"""The encoder of a transformer against its formula in NumPy; masks; the same bits recorded and by workers."""

import numpy as np
import pytest
import scipy.special

import scratchnet as sn
from scratchnet import nn
from scratchnet.testing import gradcheck

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5, 8))
LENGTHS = np.array([5, 3, 1])
PAD = np.arange(5) >= LENGTHS[:, None]


def normed(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def encoded(p, x, activation, norm_first):
    """One layer with two heads, of a single sequence (steps, 8), none of which is masked."""

    def attention(x):
        q, k, v = np.split(x @ p["self_attn.in_proj_weight"].T + p["self_attn.in_proj_bias"], 3, 1)
        parts = [slice(0, 4), slice(4, 8)]
        seen = [scipy.special.softmax(q[:, c] @ k[:, c].T / 2, axis=1) @ v[:, c] for c in parts]
        return np.hstack(seen) @ p["self_attn.out_proj.weight"] + p["self_attn.out_proj.bias"]

    def feed_forward(x):
        inner = x @ p["linear1.weight"] + p["linear1.bias"]
        inner = np.maximum(inner, 0) if activation == "relu" else inner * scipy.special.ndtr(inner)
        return inner @ p["linear2.weight"] + p["linear2.bias"]

    norm1, norm2 = (lambda x, n=n: normed(x, p[f"norm{n}.weight"], p[f"norm{n}.bias"]) for n in (1, 2))
    if norm_first:
        x = x + attention(norm1(x))
        return x + feed_forward(norm2(x))
    x = norm1(x + attention(x))
    return norm2(x + feed_forward(x))


def layer_of(**options):
    sn.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 16, **{"dropout": 0.0, "batch_first": True} | options).double()
    for p in layer.parameters():
        p.requires_grad = False
        p += sn.Tensor(0.3 * np.random.default_rng(p.size).normal(size=p.shape))
        p.requires_grad = True
    return layer


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_layer_computes_its_formula_and_padded_sequences_as_if_alone(activation, norm_first, device):
    layer = layer_of(activation=activation, norm_first=norm_first)
    y = layer(X, src_key_padding_mask=PAD).detach().numpy()
    for i, length in enumerate(LENGTHS):
        expected = encoded(layer.state_dict(), X[i, :length], activation, norm_first)
        np.testing.assert_allclose(y[i, :length], expected, rtol=1e-10, atol=1e-12)
    twin = layer_of(activation=activation, norm_first=norm_first, batch_first=False)
    other = twin(X.swapaxes(0, 1), src_key_padding_mask=PAD).detach().numpy()
    np.testing.assert_allclose(other.swapaxes(0, 1), y, rtol=1e-12, atol=1e-14)


def test_with_a_causal_mask_no_step_depends_on_later_ones():
    encoder = nn.TransformerEncoder(layer_of(), 2)
    changed = X.copy()
    changed[:, 3:] = 7.0
    mask = nn.generate_square_subsequent_mask(5).astype("float64")
    for options in ({"mask": mask}, {"is_causal": True}, {"mask": mask, "is_causal": True}):
        one, other = (encoder(x, **options).detach().numpy() for x in (X, changed))
        np.testing.assert_array_equal(one[:, :3], other[:, :3])
        assert np.abs(one[:, 3:] - other[:, 3:]).max() > 0.1


def test_an_encoder_is_its_layers_and_then_its_norm():
    layer, norm = layer_of(), nn.LayerNorm(8).double()
    encoder = nn.TransformerEncoder(layer, 2, norm)
    np.testing.assert_array_equal(encoder(X).detach().numpy(), norm(layer(layer(X))).detach().numpy())
    assert encoder.layers[0] is not layer and encoder.layers[0].linear1.weight is not encoder.layers[1].linear1.weight
    names = "self_attn.in_proj_weight self_attn.in_proj_bias self_attn.out_proj.weight self_attn.out_proj.bias"
    names += " linear1.weight linear1.bias linear2.weight linear2.bias norm1.weight norm1.bias norm2.weight norm2.bias"
    expected = [f"layers.{i}.{name}" for i in (0, 1) for name in names.split()] + ["norm.weight", "norm.bias"]
    assert list(encoder.state_dict()) == expected


@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients_match_differences(norm_first):
    layer = layer_of(norm_first=norm_first, activation="gelu")
    gradcheck(lambda x: layer(x, src_key_padding_mask=PAD[:, :3]), [X[:, :3]], order=2, max_elements=4)


def test_dropout_acts_in_training_alone():
    layer = layer_of(dropout=0.5)
    assert not np.array_equal(layer(X).detach().numpy(), layer(X).detach().numpy())
    plain = layer_of()
    np.testing.assert_array_equal(layer.eval()(X).detach().numpy(), plain(X).detach().numpy())


class Classifier(nn.Module):
    """Words -> embeddings with positions -> encoder -> mean -> classes; word 0 is padding."""

    def __init__(self):
        self.words, self.positions = nn.Embedding(20, 8), nn.PositionalEncoding(8, batch_first=True)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.head = nn.Linear(8, 2)

    def forward(self, words):
        x = self.encoder(self.positions(self.words(words)), src_key_padding_mask=words == 0)
        return self.head(x.mean(1))


WORDS = np.random.default_rng(0).integers(0, 20, (48, 7))
WORDS[:, 0] = 1


def test_a_recorded_step_has_the_bits_of_the_plain_one():
    def losses(wrap):
        sn.manual_seed(3)
        model = Classifier()
        optimizer, loss_of = sn.optim.Adam(model.parameters(), lr=0.01), nn.CrossEntropyLoss()

        @wrap
        def step(words, labels):
            optimizer.zero_grad()
            loss = loss_of(model(words), labels)
            loss.backward()
            optimizer.step()
            return loss

        found = [step(sn.Tensor(WORDS[i : i + 8]), sn.Tensor(WORDS[i : i + 8, 1] % 2)).item() for i in range(0, 48, 8)]
        assert wrap is not sn.jit or len(step.programs) == 1
        return found, [p.detach().numpy().tobytes() for p in model.parameters()]

    assert losses(sn.jit) == losses(lambda step: step)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nn.TransformerEncoderLayer(8, 3), "that 3 heads divide"),
        (lambda: nn.TransformerEncoderLayer(8, 2, activation="tanh"), "one of relu, gelu"),
        (lambda: nn.TransformerEncoder(nn.Linear(2, 2), 2), "expected a TransformerEncoderLayer"),
        (lambda: nn.TransformerEncoder(layer_of(), 0), "num_layers: expected an integer >?=? ?"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(sn.ConfigError, match=words):
        call()
