"""Files that are edited while a run goes on: workers have the code of its start, or the run says what is wrong."""

import decimal
import importlib
import itertools
import os
import sys
import time
import warnings

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.parallel import modules
from scratchnet.parallel.modules import Modules
from scratchnet.parallel.objects import SharedObject

names = (f"module_of_the_test_{i}" for i in itertools.count())
LATER = 1_000_000_000  # seconds


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a module and imports it; returns its name, the module and the file."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def write(text):
        name = next(names)
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        made.append(name)
        return name, importlib.import_module(name), tmp_path / f"{name}.py"

    yield write
    for name in made:
        sys.modules.pop(name, None)


def edit(file, text):
    """As a person does it, some time after the process began."""
    file.write_text(text)
    os.utime(file, (time.time() + LATER,) * 2)


def test_a_module_is_imported_as_it_was_when_the_run_began(written, monkeypatch):
    name, _, file = written("class Thing:\n    value = 1\n\n\ndef f():\n    return Thing.value\n")
    snapshot = Modules()
    edit(file, "def f():\n    return 2\n")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    snapshot.install()
    del sys.modules[name]
    again = importlib.import_module(name)
    assert again.f() == 1 and again.__file__ == str(file)


@pytest.mark.parametrize(
    "text", ["def f():\n    return 2\n", "class A:\n    def g(self):\n        return [i for i in range(4)]\n"]
)
def test_a_file_that_was_edited_after_its_import_is_refused(written, text):
    name, _, file = written("def f():\n    return 1\n\n\nclass A:\n    def g(self):\n        return [1]\n")
    edit(file, text)
    with pytest.raises(sn.ConfigError, match=rf"found .* edited; importlib.reload\({name}\), or start again$"):
        SharedObject(1, "here")


def test_lines_that_moved_and_comments_are_no_edit(written):
    _, _, file = written("def f():\n    return 1\n")
    edit(file, "# a comment\n\n\ndef f():\n    # and another\n    return 1\n")
    Modules()


def test_several_functions_of_one_name_are_no_edit(written):
    """Lambdas, the branches of an `if`, properties with a setter."""
    text = (
        "import sys\n\nadd, two = lambda x: x + 1, lambda x: 2\nif sys:\n    def f():\n        return 1\nelse:\n"
        "    def f():\n        return 2\n"
    )
    name, _, file = written(text)
    edit(file, text)
    Modules()
    edit(file, text.replace("x + 1", "x + 3"))
    with pytest.raises(sn.ConfigError, match=rf"found <lambda> edited; importlib.reload\({name}\)"):
        Modules()


def test_the_main_program_is_no_module(written, monkeypatch):
    name, module, _ = written("x = 1\n")
    monkeypatch.setitem(sys.modules, "__mp_main__", module)
    assert name in Modules().own and "__mp_main__" not in Modules().own


def test_a_package_without_init_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_folder" / "inner.py").write_text("x = 1\n")
    importlib.import_module("a_folder.inner")
    try:
        own = Modules().own
        assert own["a_folder"].search == (str(tmp_path / "a_folder"),) and own["a_folder.inner"].search is None
    finally:
        del sys.modules["a_folder"], sys.modules["a_folder.inner"]


def modes(comm):
    """What a worker finds of what its parent set."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.warn("pass over this", UserWarning, stacklevel=1)
    third = decimal.Decimal(1) / 3
    return np.geterr()["over"], len(heard), str(third), sys.getrecursionlimit(), sys.get_int_max_str_digits()


def test_what_a_program_set_for_its_process_holds_for_its_workers():
    """Else a worker would compute, raise or print something else, in silence."""
    limits = sys.getrecursionlimit(), sys.get_int_max_str_digits()
    try:
        with np.errstate(over="raise"), decimal.localcontext(prec=5), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pass over")
            sys.setrecursionlimit(2345)
            sys.set_int_max_str_digits(5000)
            assert sn.parallel.run(modes, workers=1) == [("raise", 0, "0.33333", 2345, 5000)]
    finally:
        sys.setrecursionlimit(limits[0])
        sys.set_int_max_str_digits(limits[1])


def test_filters_of_warnings_that_another_thread_changes_meanwhile_do_no_harm(monkeypatch):
    class Growing(list):
        def __iter__(self):
            seen = self[:]
            self.append(seen[-1])  # as another thread does
            return iter(seen)

    monkeypatch.setattr(warnings, "filters", Growing(warnings.filters))
    before = len(warnings.filters)
    assert 0 < len(modules.Modes().values["warnings"]) <= before


def test_installed_modules_are_watched_only(monkeypatch):
    snapshot = Modules()
    assert not {name.partition(".")[0] for name in snapshot.own} & {"numpy", "scratchnet", "json", "pytest"}
    assert snapshot.changed() is None
    original = modules._stamp
    monkeypatch.setattr(modules, "_stamp", lambda file: (0, 0) if file == sn.__file__ else original(file))
    assert snapshot.changed() == sn.__file__
