"""Random numbers: known-answer vectors of Philox, the generator's contract, and what seeds mean."""

import threading

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.kernels import reference
from scratchnet.random import Generator, current, using

# Philox4x32-10 of the Random123 distribution (kat_vectors): counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, answer):
    np.testing.assert_array_equal(reference._philox(words(counter)[None], words(key)), words(answer)[None])


def test_dropout_takes_the_upper_24_bits_of_each_philox_word(device):
    _, _, answer = KNOWN_ANSWERS[0]  # counter (block 0, stream 0) and seed 0
    u = (words(answer) >> 8) / 2.0**24
    x = sn.Tensor(np.ones(4, np.float32))
    for p in (*u, *(u + 2.0**-24)):
        y = sn.ops.dropout(x, p=float(p), key=np.zeros(2, np.uint64)).numpy()
        np.testing.assert_array_equal(y != 0, u >= p)


def test_streams_are_handed_out_one_after_the_other():
    generator = Generator(7, stream=5)
    assert [generator.next_stream() for _ in range(3)] == [5, 6, 7]


def test_the_last_stream_is_followed_by_the_first():
    generator = Generator(0, stream=2**64 - 1)
    assert [generator.next_stream() for _ in range(2)] == [2**64 - 1, 0]


@pytest.mark.parametrize(
    ("seed", "word"),
    [(0, 0), (-1, 2**64 - 1), (2**64, 0), (2**200 + 3, 3), (np.int32(9), 9), (np.uint64(2**63), 2**63)],
)
def test_a_seed_counts_modulo_two_to_the_64(seed, word):
    assert Generator(seed).seed == word
    assert sn.manual_seed(seed).seed == word


@pytest.mark.parametrize("seed", [1.0, "1", None, True, np.float64(3)])
def test_a_seed_that_is_not_an_integer_is_refused(seed):
    for make in (Generator, sn.manual_seed):
        with pytest.raises(sn.ConfigError, match="expected an integer"):
            make(seed)


def test_numpy_generators_depend_on_seed_and_stream_alone():
    draws = {(seed, stream): Generator(seed, stream).numpy().random(4) for seed in (0, 1) for stream in (0, 1)}
    generator = Generator(1)
    generator.numpy().random(1000)  # what one stream draws does not move the next
    np.testing.assert_array_equal(generator.numpy().random(4), draws[1, 1])
    assert len({tuple(draw) for draw in draws.values()}) == 4


def test_numpy_generators_are_philox_keyed_by_seed_and_stream():
    key = np.array([11, 3], np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key)).standard_normal(5)
    np.testing.assert_array_equal(Generator(11, stream=3).numpy().standard_normal(5), expected)


def test_manual_seed_starts_again():
    def draw():
        return sn.nn.Linear(3, 4).state_dict()["weight"]

    sn.manual_seed(5)
    first, second = draw(), draw()
    sn.manual_seed(5)
    np.testing.assert_array_equal(draw(), first)
    assert not np.array_equal(first, second)


def test_using_replaces_the_generator_inside_only():
    outside = current()
    with using(Generator(1)) as outer:
        assert current() is outer
        with pytest.raises(KeyError), using(Generator(2)):
            raise KeyError
        assert current() is outer
    assert current() is outside


def test_threads_that_seed_and_draw_at_once_do_not_disturb_each_other():
    def drawn():
        sn.manual_seed(7)
        turns.wait()  # both have seeded
        numbers = []
        for _ in range(3):
            numbers.append(sn.rand(2).tolist())
            turns.wait()
        found.append(numbers)

    sn.manual_seed(7)
    expected, turns, found = [sn.rand(2).tolist() for _ in range(3)], threading.Barrier(2), []
    threads = [threading.Thread(target=drawn) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected, expected]
    assert current().seed == 7 and sn.manual_seed(7) is current()


def test_using_does_not_reach_other_threads():
    seen = []
    with using(Generator(1)):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
        assert seen[0] is not current()


def test_a_generator_goes_on_from_its_state_dict():
    generator = Generator(-3)
    generator.next_stream()
    copy = Generator(0)
    copy.load_state_dict(generator.state_dict())
    assert (copy.seed, copy.next_stream()) == (2**64 - 3, 1)


@pytest.mark.parametrize("state", [None, {}, {"seed": 1, "stream": 0.5}, {"seed": 1, "other": 2}])
def test_a_damaged_state_is_refused_and_changes_nothing(state):
    generator = Generator(4, stream=2)
    with pytest.raises(sn.CheckpointError, match="expected integers seed and stream"):
        generator.load_state_dict(state)
    assert generator.state_dict() == {"seed": 4, "stream": 2}
