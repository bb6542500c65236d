"""A main program that sends to workers what people define in their scripts, and compares what comes back. Prints the
names of what was wrong."""

import abc
import enum
import functools
import importlib.util
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

import scratchnet as sn

T = TypeVar("T")
Kind = enum.Enum("Kind", "A B")


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


class Text(enum.StrEnum):
    RED = "red"


class Registering(type):
    """A metaclass that keeps a list of its classes, with an argument."""

    classes: list = []  # noqa: RUF012

    def __new__(meta, name, bases, namespace, tag=None):
        made = super().__new__(meta, name, bases, namespace)
        made.tag = tag
        Registering.classes.append(name)
        return made

    def __init__(cls, name, bases, namespace, tag=None):
        super().__init__(name, bases, namespace)


class Tagged(metaclass=Registering, tag="t"):
    pass


class Base:
    known: dict = {}  # noqa: RUF012

    def __init_subclass__(cls, **options):
        Base.known[cls.__name__] = cls


class Child(Base):
    value = 7


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...


class Square(Shape):
    def __init__(self, side):
        self.side = side

    def area(self):
        return super().__class__.__name__, self.side**2


class Box(Generic[T]):
    def __init__(self, item: T):
        self.item = item


class Point(NamedTuple):
    x: int
    y: int = 2


class Lazy:
    @functools.cached_property
    def answer(self):
        return 42


class Data(sn.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return np.ones(3, np.float32), index


def even(n):
    return True if n == 0 else odd(n - 1)


def odd(n):
    return False if n == 0 else even(n - 1)


def recursive():
    def factorial(n):
        return 1 if n == 0 else n * factorial(n - 1)

    return factorial


@functools.cache
def cached(n):
    return 1 if n == 0 else n * cached(n - 1)


class Cached:
    @functools.lru_cache(maxsize=3, typed=True)  # noqa: B019
    def square(self, n):
        return n**2


@functools.singledispatch
def kind_of(x):
    return "object"


@kind_of.register
def _(x: int):
    return "int"


factorial = recursive()
lock, rlock, condition, local = threading.Lock(), threading.RLock(), threading.Condition(), threading.local()
local.value = 5
lock.acquire()  # whoever holds it here holds nothing in a worker


def locked():
    with lock, rlock, rlock, condition:
        return local.value


def loaded_by_path(name, text):
    """A module as a plugin loader makes it: nobody finds it by its name."""
    path = Path(tempfile.mkdtemp()) / "plugin.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path.unlink()
    return module


plugin = loaded_by_path("the_plugin", "class Thing:\n    pass\n\ndef f():\n    return Thing.__name__\n")
made = types.ModuleType("made_in_memory")
exec("def g():\n    return 'made'\n", vars(made))
sys.modules["made_in_memory"] = made
big = np.arange(100_000)
big.flags.writeable = False

PROBES = {
    "enum": (lambda: Kind.B, Kind.B),
    "flag": (lambda: Level.LOW | Level.HIGH, Level(3)),
    "text": (lambda: Text.RED, Text.RED),
    "metaclass": (lambda: (Tagged.tag, type(Tagged) is Registering), ("t", True)),
    "registering": (lambda: Base.known["Child"]().value, 7),
    "abstract": (lambda: Square(3).area(), ("super", 9)),
    "generic": (lambda: Box[int](4).item, 4),
    "named tuple": (lambda: Point(1), Point(1)),
    "dataset": (lambda: [len(x) for x in Data().gather([0, 1])], [2, 2]),
    "each other": (lambda: even(10), True),
    "itself": (lambda: factorial(5), 120),
    "cached": (lambda: Lazy().answer, 42),
    "cached function": (lambda: (cached(4), cached.cache_info().misses), (24, 5)),
    "cached method": (lambda: (Cached().square(3), Cached.square.cache_parameters()["maxsize"]), (9, 3)),
    "single dispatch": (lambda: (kind_of(1), kind_of("a")), ("int", "object")),
    "locks": (locked, 5),
    "plugin": (lambda: plugin.f(), "Thing"),
    "function of a plugin": (plugin.f, "Thing"),
    "class of a plugin": (lambda: plugin.Thing, plugin.Thing),
    "made in memory": (made.g, "made"),
    "read-only": (lambda: (int(big[-1]), big.flags.writeable), (99_999, False)),
}


def answer(comm):
    return {name: probe() for name, (probe, _) in PROBES.items()}


found = sn.parallel.run(answer, workers=1)[0]
wrong = [name for name, (_, expected) in PROBES.items() if found[name] != expected]
print(wrong, found["enum"] is Kind.B)
