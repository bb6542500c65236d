"""A main program whose classes and functions workers get by value: tests/parallel/pool/test_launch.py."""

import dataclasses

import numpy as np

import scratchnet as sn

print("main program runs", flush=True)


@dataclasses.dataclass
class Answer:
    value: float


class Child(Answer):
    def __repr__(self):
        return "child of " + super().__repr__()


def helper(x):
    return Answer(float(np.sum(x)))


def fn(comm, n):
    return [helper(comm.all_reduce(np.ones(n))), Child(1.0)]


results = sn.parallel.run(fn, 5, workers=2)
print(results, {type(answer) is Answer for answer, _ in results}, results[0][0] == Answer(10.0))
