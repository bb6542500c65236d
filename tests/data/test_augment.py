"""Augmentation: random numbers that belong to (seed, epoch, sample), crops and flips that are windows and mirrors."""

import numpy as np
import pytest

from scratchnet.data import (
    Augmented,
    ConcatDataset,
    DataLoader,
    RandomCrop,
    RandomHorizontalFlip,
    Subset,
    TensorDataset,
)
from scratchnet.data.augment import uniform_numbers
from scratchnet.errors import ConfigError, ShapeError

IMAGES = np.random.default_rng(0).random((12, 2, 5, 6), dtype=np.float32)
DATA = TensorDataset(IMAGES, np.arange(12))
FUNCTIONS = [RandomCrop((4, 5), padding=1), RandomHorizontalFlip()]


def by_sample(batches):
    return {int(y): x for features, labels in batches for x, y in zip(features, labels, strict=True)}


def test_the_numbers_are_those_of_philox():
    """Salmon et al. 2011, known answers of Philox 4x32-10 (Random123, kat_vectors)."""
    zeros = uniform_numbers(0, np.array([0]), np.array([0]), 0)
    assert (zeros * 2**32).astype(np.uint64).tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]


def test_the_numbers_are_uniform_and_differ_by_seed_sample_epoch_and_function():
    samples = np.arange(25_000)
    u = uniform_numbers(3, samples, np.zeros_like(samples), 0)
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(u.mean(axis=0) - 0.5).max() < 5 * np.sqrt(1 / 12 / 25_000)
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 5 / np.sqrt(25_000)
    one = np.array([7])
    draws = [
        uniform_numbers(seed, one + 2**32 * far, one * epoch, k)
        for seed in (0, 1, 2**32) for far in (0, 1) for epoch in (0, 1, 2**33) for k in (0, 1)
    ]  # fmt: skip
    assert len({draw.tobytes() for draw in draws}) == len(draws)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_a_sample_looks_the_same_in_every_batch_of_an_epoch(batch_size, workers):
    augmented = Augmented(DATA, FUNCTIONS, seed=1)
    expected = by_sample(DataLoader(augmented, 12).batches(3))
    found = by_sample(DataLoader(augmented, batch_size, shuffle=True, num_workers=workers).batches(3))
    assert {k: x.tobytes() for k, x in found.items()} == {k: x.tobytes() for k, x in expected.items()}
    other = by_sample(DataLoader(augmented, 12).batches(4))
    assert sum(other[k].tobytes() != expected[k].tobytes() for k in range(12)) > 8


def test_views_below_and_above_keep_the_epoch():
    def minus(x):
        return -x

    inside = Augmented(Subset(DATA, range(4, 9)), FUNCTIONS)
    chosen = Subset(inside.map(minus), [3, 1])
    assert len(chosen) == 2
    x, y = next(DataLoader(chosen, 2).batches(5))
    whole, labels = next(DataLoader(inside, 5).batches(5))
    np.testing.assert_array_equal(x, -whole[[3, 1]])
    np.testing.assert_array_equal(y, labels[[3, 1]])
    (pairs,) = DataLoader(inside, 5, collate_fn=lambda samples: np.stack([x for x, _ in samples])).batches(5)
    np.testing.assert_array_equal(pairs[0], whole)
    np.testing.assert_array_equal(inside[2][0], inside.gather([2])[0][0])


@pytest.mark.parametrize("images", [IMAGES, IMAGES[:, 0], (IMAGES * 255).astype(np.uint8)], ids=["c", "gray", "bytes"])
def test_a_crop_is_a_window_of_the_padded_image(images):
    u = np.random.default_rng(1).random((12, 4))
    out = RandomCrop((3, 4), padding=2)(images, u)
    assert out.shape == (*images.shape[:-2], 3, 4) and out.dtype == images.dtype
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(2, 2)] * 2)
    places = set()
    for image, window in zip(padded, out, strict=True):
        found = [(r, c) for r in range(7) for c in range(7) if np.array_equal(image[..., r : r + 3, c : c + 4], window)]
        assert found
        places.add(found[0])
    assert len(places) > 4
    edge = np.array([[0, 1 - 2**-32, 0, 0]] * 12)
    np.testing.assert_array_equal(RandomCrop((3, 4))(images, edge), images[..., :3, 2:])


def test_a_flip_turns_about_p_of_the_images():
    u = np.linspace(0, 1, 12, endpoint=False)[:, None] * np.ones(4)
    out = RandomHorizontalFlip(0.25)(IMAGES, u)
    turned = [np.array_equal(a, b[..., ::-1]) for a, b in zip(out, IMAGES, strict=True)]
    assert turned == [True] * 3 + [False] * 9
    np.testing.assert_array_equal(out[3:], IMAGES[3:])


def test_augmentations_print_themselves():
    printed = [repr(RandomCrop(2, 1)), repr(RandomHorizontalFlip(0.25))]
    assert printed == ["RandomCrop((2, 2), padding=1)", "RandomHorizontalFlip(p=0.25)"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: RandomCrop(9)(IMAGES, np.zeros((12, 4))),
            ShapeError,
            r"at least \(9, 9\) .* got \(5, 6\)",
        ),
        (lambda: RandomCrop(2)(np.ones((3, 4)), np.zeros((3, 4))), ShapeError, r"images \(b, h, w\).*reshape"),
        (lambda: RandomCrop((2, 3, 4)), ConfigError, "one length, or .height, width."),
        (lambda: RandomHorizontalFlip(2), ConfigError, "a number in"),
        (lambda: Augmented(DATA, [RandomCrop]), ConfigError, r"write RandomCrop\(\)"),
        (lambda: Augmented(DATA, [lambda x, u: x[1:]])[0], ShapeError, "expected 1 rows"),
        (lambda: Augmented(Augmented(DATA, []), []), ConfigError, "give all functions in one list"),
        (lambda: ConcatDataset([Augmented(DATA, [])]), ConfigError, "augment the whole of them"),
    ],
)
def test_what_cannot_be_augmented_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
