"""What is sent to workers: whatever people define in a script arrives as it is there, or is refused by name."""

import functools
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scratchnet as sn
from scratchnet.parallel.objects import SharedObject, culprit, dumps, generator_in, loads

PROGRAM = Path(__file__).parents[1] / "programs" / "sent_objects.py"


def test_what_a_script_defines_arrives_in_a_worker_and_comes_back_as_the_very_thing():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[] True\n", "")


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_what_is_sent_is_what_arrives(value):
    assert loads(dumps(value)) == value


class Data:
    def __init__(self, part):
        self.parts = {"a": [1, part]}


REMEDY = r"; make it in the worker, at its first use, or leave it out by __getstate__$"


@pytest.mark.parametrize("kind", ["generator", "file"])
def test_what_cannot_be_sent_is_named_with_the_way_to_it_and_the_remedy(kind, tmp_path):
    with open(tmp_path / "file", "w") as file:
        value = {"generator": (i for i in range(3)), "file": file}[kind]
        with pytest.raises(sn.ConfigError, match=r"^here: \w+Error: .*, in parts\['a'\]\[1\]" + REMEDY):
            SharedObject(Data(value), "here")
        assert culprit(lambda: value) == "value"


class Raises:
    """Cannot be sent, and its error has no words."""

    def __reduce__(self):
        raise ValueError


def test_an_error_without_words_is_named():
    with pytest.raises(sn.ConfigError, match=r"^here: ValueError: no reason given, in it" + REMEDY):
        SharedObject(Raises(), "here")


def test_large_arrays_are_there_once_and_whoever_changes_one_changes_its_own():
    array = np.arange(100_000)
    shared = SharedObject({"x": array, "small": np.arange(3)}, "here")
    first, second = shared.open(), shared.open()
    assert len(dumps(first)) > array.nbytes > 2000 > shared.extents[0][1]
    first["x"][0] = 7
    assert second["x"][0] == 0 and (shared.open()["x"] == array).all()
    assert first["x"].flags.writeable and first["x"].ctypes.data % 64 == 0


def test_arrays_in_any_layout_arrive():
    base = np.arange(200_000.0).reshape(400, 500)
    arrays = [base.T, base[::2, ::-1], np.asfortranarray(base), base.astype(">f8"), np.zeros((0, 5)), base[:, :1]]
    for sent, arrived in zip(arrays, SharedObject(arrays, "here").open(), strict=True):
        assert arrived.dtype == sent.dtype and np.array_equal(arrived, sent)


def test_a_cached_function_inside_of_another_arrives():
    @functools.lru_cache(maxsize=7)
    def double(x):
        return 2 * x

    arrived = loads(dumps(double))
    assert arrived(3) == 6 and arrived.cache_parameters() == {"maxsize": 7, "typed": False}


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState, random.Random])
def test_a_generator_that_a_data_set_keeps_is_found(make):
    assert generator_in(Data(make(3)), "dataset") == "dataset.parts['a'][1]"
    assert generator_in(Data([1] * 1000), "dataset") is None and generator_in(Data(np.random), "dataset") is None


def test_what_cannot_be_sent_is_named_though_another_thread_changes_the_object_meanwhile():
    class Part:
        def __reduce__(self):
            data.more = 1  # as another thread does, which reads from the same data set
            return int, ()

    data = Data(Part())
    data.last = (i for i in range(3))
    assert culprit(data) == "last"


def test_weak_collections_arrive():
    import weakref

    key = Data(1)
    sent = key, weakref.WeakKeyDictionary({key: 2}), weakref.WeakValueDictionary({"a": key}), weakref.WeakSet([key])
    arrived, by_key, by_name, every = loads(dumps(sent))
    assert by_key[arrived] == 2 and by_name["a"] is arrived and list(every) == [arrived] and arrived is not key


def test_threads_that_send_at_once_do_not_disturb_each_other():
    found = []
    threads = [threading.Thread(target=lambda i=i: found.append(loads(dumps(i)))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))


def test_a_function_that_is_sent_by_value_knows_its_file():
    function = loads(dumps(lambda: 1 / 0))
    assert function.__code__.co_filename == __file__
