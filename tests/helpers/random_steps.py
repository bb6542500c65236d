"""Random steps, run plain and recorded in two worlds that are alike: the differential tester of `sn.jit`.

A program is a few functions of small pieces of Python, by name, and a list of calls: with which arguments, and what is
changed before. `compare(program)` runs it twice, one world plain and one with `jit`, and tells after each call what is
not the same: results, errors, arguments, and all that the world holds. A JitError ends the comparison.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random as python_random
import struct
import sys
import types
import warnings
from typing import Any, NamedTuple

import numpy as np

import scratchnet as sn
from scratchnet import random
from scratchnet.nn import Module
from scratchnet.optim import Optimizer
from scratchnet.optim.lr_scheduler import LRScheduler
from scratchnet.tensor import USED_UP, Tensor

WORLD = """
import collections, copy, dataclasses, enum, functools, itertools, math, operator, random, types
import numpy as np
import scratchnet as sn
from scratchnet.nn import functional as F
from scratchnet.ops.table import Op

class Net(sn.nn.Module):
    def __init__(self):
        self.first, self.norm, self.drop = sn.nn.Linear(4, 4), sn.nn.BatchNorm1d(4), sn.nn.Dropout(0.3)
        self.act, self.last, self.gain = sn.nn.Tanh(), sn.nn.Linear(4, 4), 1.5
    def forward(self, h):
        return self.last(self.act(self.drop(self.norm(self.first(h))))) * self.gain

class Config:
    factor = 1.25
    def __init__(self):
        self.shift, self.rate, self.scales = 0.5, 0.25, [1.5, 2.5]
    def moved(self, h):
        return h + self.shift
    @property
    def half(self):
        return self.shift / 2
    @classmethod
    def grown(cls, h):
        return h * cls.factor
    @staticmethod
    def turned(h):
        return h * scale

class Child(Config):
    def moved(self, h):
        return super().moved(h) * 0.5

class Slotted:
    __slots__ = ("shift",)
    def __init__(self):
        self.shift = 0.75

class Callable:
    def __init__(self):
        self.gain = 1.75
    def __call__(self, h):
        return h * self.gain

class Lazy:
    def __getattr__(self, name):
        return table[0]

class Special:
    gain = 1.25
    def __getitem__(self, i):
        return helper_gain
    def __len__(self):
        return count
    def __iter__(self):
        return iter(table)
    def __mul__(self, h):
        return h * scale
    def __contains__(self, name):
        return mode == name
    def __enter__(self):
        return config.shift
    def __exit__(self, *exc_info):
        return None
    def __bool__(self):
        return scale > 2.5
    def __float__(self):
        return float(scale)

class Made:
    def __init__(self, by):
        self.gain = by * config.shift

class Color(enum.Enum):
    RED = 1
    BLUE = 2

Point = collections.namedtuple("Point", "loss out")

@dataclasses.dataclass
class Found:
    loss: object
    out: object = None

@dataclasses.dataclass(frozen=True)
class Frozen:
    gain: float = 1.5

sn.manual_seed(1)
net, extra = Net(), sn.nn.Linear(4, 4)
opt = {optimizer}
sched = sn.optim.lr_scheduler.{schedule}
saved = {{name: x * 0.5 for name, x in net.state_dict().items()}}
scale, mode, color, count, helper_gain = 2.0, "up", Color.RED, 3, 1.5
table, nested, mapping = [1.5, 2.5, -0.5], [[1.0, 1.5], [2.0]], {{"k": 1.5, "on": True}}
config, child, slotted, called, lazy = Config(), Child(), Slotted(), Callable(), Lazy()
frozen, special = Frozen(), Special()
weights, rows, mask = np.array([1.0, 0.5, -1.0, 2.0], np.float32), np.array([0, 2, 1]), np.array([True, False, True])
const, offset = sn.Tensor(np.linspace(-1, 1, 4).astype(np.float32)), sn.Tensor(np.ones(4, np.float32))
trained = sn.Tensor(np.ones(4, np.float32), requires_grad=True)
ema = sn.Tensor(np.zeros((4, 4), np.float32))
draws, gen = np.random.default_rng(4), sn.random.Generator(5) if hasattr(sn, "random") else None
history, memo, counter, cycle = [], {{}}, {{"n": 0}}, itertools.cycle([1.0, 2.0])
names, choices, wide = {{"relu"}}, (1.0, 2.0, 3.0), list(range(300))

def helper(h, by=1.5):
    return h * helper_gain + by

def other_helper(h, by=-1.5):
    return h - by

helper.gain = 2.0
partial = functools.partial(helper, by=0.25)
functions = {{"f": lambda h: h * table[1]}}
user_op = Op("user_op", lambda device, x: np.tanh(x) * scale, (lambda g, y, x: g * (1 - (y / scale) ** 2) * scale,))
aware_op = Op("aware_op", lambda device, x, gain=1.0: x * np.float32(gain), (lambda g, y, x, gain=1.0: g * gain,))

def wrapped(f):
    @functools.wraps(f)
    def inside(h):
        return f(h) * scale
    return inside

@wrapped
def decorated(h):
    return h + helper_gain

@jit
def inner(h):
    return h * scale + const

def set_scale(value):
    global scale
    scale = value
"""

# h (n, 4) float32 in, the same out; True: what a step of this piece alone must be replayed as
HIDDEN: dict[str, tuple[bool, str]] = {
    "network": (True, "h = net(h)"),
    "layer": (True, "h = net.first(h).relu()"),
    "layer twice": (True, "h = net.first(net.first(h))"),
    "extra layer": (True, "h = extra(h).sigmoid()"),
    "dropout": (True, "h = net.drop(h)"),
    "norm": (True, "h = net.norm(h)"),
    "global": (True, "h = h * scale"),
    "branch on a global": (True, "h = h * 2 if scale > 1 else h - 1"),
    "sign of a global": (True, "h = h * math.copysign(1.0, scale)"),
    "type of a global": (True, "h = h * (2.0 if isinstance(scale, bool) else 3.0 if isinstance(scale, int) else 1.0)"),
    "text": (True, "h = h if mode == 'up' else -h"),
    "enum": (True, "h = h if color is Color.RED else -h"),
    "enum's value": (True, "h = h * color.value"),
    "list item": (True, "h = h * table[0]"),
    "list length": (True, "h = h * len(table)"),
    "list sum": (True, "h = h * sum(table)"),
    "list loop": (True, "for gain in table:\n    h = h + gain"),
    "nested list": (True, "h = h * nested[0][1]"),
    "dictionary": (True, "h = h * mapping['k']"),
    "dictionary get": (True, "h = h * mapping.get('k', 0.5)"),
    "dictionary key": (True, "h = h * 2 if 'on' in mapping else h"),
    "dictionary loop": (True, "for name, gain in mapping.items():\n    h = h + gain"),
    "set": (True, "h = h.relu() if 'relu' in names else h"),
    "tuple": (True, "h = h * choices[count % 3]"),
    "attribute": (True, "h = h + config.shift"),
    "list of an attribute": (True, "h = h * config.scales[0]"),
    "class attribute": (True, "h = h * Config.factor"),
    "class attribute by the object": (True, "h = h * config.factor"),
    "method": (True, "h = config.moved(h)"),
    "super": (True, "h = child.moved(h)"),
    "property": (True, "h = h + config.half"),
    "class method": (True, "h = Config.grown(h)"),
    "static method": (True, "h = config.turned(h)"),
    "slot": (True, "h = h + slotted.shift"),
    "called object": (True, "h = called(h)"),
    "getattr": (True, "h = h + getattr(config, 'shift')"),
    "vars": (True, "h = h + vars(config)['shift']"),
    "attrgetter": (True, "h = h + operator.attrgetter('shift')(config)"),
    "hasattr": (True, "h = h * 2 if hasattr(config, 'bonus') else h"),
    "lazy attribute": (True, "h = h * lazy.anything"),
    "own item": (True, "h = h * special[0]"),
    "own length": (True, "h = h * len(special)"),
    "own loop": (True, "for gain in special:\n    h = h + gain"),
    "own operator": (True, "h = special * h"),
    "own membership": (True, "h = h * 2 if 'up' in special else h"),
    "own context": (True, "with special as shift:\n    h = h + shift"),
    "own truth": (True, "h = h * 2 if special else h"),
    "own float": (True, "h = h * float(special)"),
    "object made": (True, "h = h * Made(scale).gain"),
    "globals": (True, "h = h * globals()['scale']"),
    "frozen dataclass": (True, "h = h * frozen.gain"),
    "replaced dataclass": (True, "h = h * dataclasses.replace(frozen, gain=config.shift).gain"),
    "helper": (True, "h = helper(h)"),
    "function's attribute": (True, "h = h * helper.gain"),
    "partial": (True, "h = partial(h)"),
    "function in a dictionary": (True, "h = functions['f'](h)"),
    "decorated": (True, "h = decorated(h)"),
    "local function": (True, "def local(v):\n    return v * scale + config.shift\nh = local(h)"),
    "comprehension": (True, "h = h * sum([v * scale for v in table])"),
    "map": (True, "h = h * sum(map(abs, table))"),
    "reduce": (True, "h = functools.reduce(lambda v, k: v + k, table, h)"),
    "module's gain": (True, "h = h * net.gain"),
    "training": (True, "h = h * (2.0 if net.training else 0.5)"),
    "requires grad": (True, "h = h * (2.0 if net.first.weight.requires_grad else 0.5)"),
    "dtype of a parameter": (True, "h = h * (2.0 if net.first.weight.dtype == np.float32 else 0.5)"),
    "device of a parameter": (True, "h = h * (2.0 if net.first.weight.device == 'cpu' else 0.5)"),
    "argument normalised": (True, "h = h + (a - a.mean()) / (a.std() + 1)"),
    "argument's element": (True, "h = h * a[-1, -1] if len(a) else h"),
    "count of parameters": (True, "h = h * float(sum(p.requires_grad for p in net.parameters()))"),
    "learning rate": (True, "h = h * opt.param_groups[0]['lr']"),
    "groups": (True, "h = h * float(len(opt.param_groups))"),
    "array": (True, "h = h * weights"),
    "tensor of an array": (True, "h = h + sn.Tensor(weights)"),
    "copy of an array": (True, "h = h + sn.tensor(weights)"),
    "numpy on an array": (True, "h = h * (weights * 2).astype(np.float32)"),
    "mean of an array": (True, "h = h * float(weights.mean())"),
    "constant tensor": (True, "h = h + const"),
    "constant that may require grad": (True, "h = h * trained"),
    "parameter": (True, "h = h @ net.last.weight"),
    "parameter detached": (True, "h = h @ net.last.weight.detach()"),
    "parameter's part": (True, "h = h + net.first.weight[0]"),
    "parameter to numpy": (False, "h = h * net.last.weight.detach().numpy()[0]"),
    "buffer": (True, "h = h + net.norm.running_mean"),
    "argument": (True, "h = h + a"),
    "argument as tensor": (True, "h = h + sn.Tensor(a)"),
    "argument as copy": (True, "h = h + sn.tensor(a)"),
    "argument as float32": (True, "h = h + sn.Tensor(a, dtype='float32')"),
    "argument scaled": (True, "h = h + sn.Tensor(a / 255)"),
    "argument by a global": (True, "h = h + a * scale"),
    "argument by an array": (True, "h = h + a * weights"),
    "argument with a mean": (True, "h = h + (a - a.mean(0)).astype(np.float32)"),
    "argument reversed": (True, "h = h + a[::-1]"),
    "argument clipped": (True, "h = h + a.clip(0, 1)"),
    "argument where": (True, "h = h + np.where(a > 0, a, np.float32(scale))"),
    "argument's rows": (True, "h = h + a[rows % len(a)][0]"),
    "argument's shape": (True, "h = h * a.shape[0]"),
    "argument's flags": (False, "h = h * (1.0 if a.flags.writeable else 2.0)"),
    "argument's item": (False, "h = h * a[0, 0].item()"),
    "argument's branch": (False, "h = h if a.sum() > 0 else -h"),
    "argument's max": (True, "h = h + a.max(axis=0)"),
    "argument's largest": (True, "h = h + a.max()"),
    "argument unpacked": (True, "for row in a:\n    h = h + row"),
    "argument stacked": (True, "h = h + np.stack([a, a])[1]"),
    "argument written": (False, "a[0] = 1.0\nh = h + a"),
    "argument added to": (False, "a += 1\nh = h + a"),
    "one hot": (False, "h = h + np.eye(4, dtype=np.float32)[b]"),
    "labels as floats": (True, "h = h + b.astype(np.float32)[:, None]"),
    "labels as index": (True, "h = h + const[b % 4][:, None]"),
    "number": (True, "h = h * c"),
    "branch on a number": (True, "h = h.relu() if c > 0 else h"),
    "sign of a number": (True, "h = h * math.copysign(1.0, c)"),
    "type of a number": (True, "h = h * (2.0 if isinstance(c, bool) else 3.0 if isinstance(c, int) else 1.0)"),
    "flag": (True, "h = -h if flag else h"),
    "flag's text": (True, "h = h * len(str(flag))"),
    "flag's attribute": (True, "h = h * getattr(flag, 'shift', 1.0)"),
    "user op": (True, "h = user_op(h)"),
    "user op with an option": (True, "h = aware_op(h, gain=config.shift)"),
    "index": (True, "h = h[[0, -1, 0]][:1] + h"),
    "index by an array": (True, "h = h[rows % len(h)][:1] + h"),
    "mask": (True, "h = h * h[0][np.array([True, False, True, True])].sum()"),
    "mask by comparing": (False, "h = h + h[h > 0].sum()"),
    "reversed": (True, "h = h[:, ::-1]"),
    "transposed": (True, "h = h.T.T"),
    "reshaped": (True, "h = h.reshape(-1).reshape(h.shape)"),
    "flattened": (True, "h = sn.nn.Flatten()(h)"),
    "detached": (True, "h = h.detach()"),
    "detached sum": (True, "h = h + h.detach().mean()"),
    "no grad": (True, "with sn.no_grad():\n    h = h * 2"),
    "where": (True, "h = sn.where(h > 0, h, const)"),
    "in place": (True, "h = h * 1\nh += 1"),
    "argument in place": (True, "x += 1.0\nh = h + x"),
    "argument's item set": (True, "x[0] = 2.0\nh = h + x"),
    "constant in place": (True, "const.add_(1)\nh = h + const"),
    "view in place": (True, "with sn.no_grad():\n    ema[0] += 1\nh = h + ema[0]"),
    "set items of a constant": (True, "const[1] = 0.5\nh = h + const"),
    "numpy draw": (False, "h = h + float(np.random.rand())"),
    "generator's draw": (False, "h = h + draws.standard_normal(4).astype(np.float32)"),
    "python's draw": (False, "h = h * random.random()"),
    "iterator": (False, "h = h * next(cycle)"),
    "history": (False, "history.append(1)\nh = h * len(history)"),
    "counter": (False, "counter['n'] += 1\nh = h * counter['n']"),
    "silent counter": (False, "counter['n'] += 1"),
    "silent history": (False, "history.append(len(h))"),
    "attribute set": (False, "config.shift += 0.5"),
    "attribute set to the same": (False, "config.shift = config.shift"),
    "global set": (False, "count_up()"),
    "kept tensor": (False, "history.append(h.sum())"),
    "kept argument": (False, "memo['x'] = x"),
    "memo": (False, "h = h * memo.setdefault('h', 2.0)"),
    "memo of a tensor": (False, "if 'h' not in memo:\n    memo['h'] = h.detach().mean()\nh = h * memo['h']"),
    "numpy written": (False, "weights[0] += 1\nh = h * weights"),
    "switched mode": (True, "net.eval()\nh = net(h)\nnet.train()"),
    "left in evaluation": (False, "net.eval()\nh = net(h)"),
    "new layer": (False, "h = sn.nn.Linear(4, 4)(h)"),
    "new activation": (True, "h = sn.nn.Tanh()(h)"),
    "layer replaced inside": (False, "net.act = sn.nn.ReLU()\nh = net(h)"),
    "loaded inside": (False, "net.load_state_dict(saved)\nh = net(h)"),
    "seed inside": (False, "sn.manual_seed(3)\nh = net.drop(h)"),
    "frozen inside": (True, "net.first.requires_grad_(False)\nh = net(h)\nnet.first.requires_grad_(True)"),
    "new leaf": (True, "leaf = sn.Tensor(weights, requires_grad=True)\nh = h * leaf"),
    "deepcopy": (False, "h = copy.deepcopy(net.first)(h)"),
    "inner step": (True, "h = inner(h)"),
    "gradient of a function": (True, "h = h + sn.grad(lambda v: (v * v * scale).sum())(const)"),
    "norm by hand": (True, "h = (h - h.mean(0)) / (h.var(0) + 1e-5).sqrt()"),
    "softmax": (True, "h = h.softmax(-1)"),
    "stack": (True, "h = sn.stack([h, h * 2]).mean(0)"),
    "cat": (True, "h = sn.cat([h, h])[: len(h)]"),
    "float64 detour": (True, "h = (h.astype('float64') * 2).astype('float32')"),
    "shape as a number": (True, "h = h * len(h) + h.shape[1]"),
    "constant made": (True, "h = h + sn.Tensor([1.0, 2.0, 3.0, 4.0])"),
    "constant of a list": (True, "h = h + sn.Tensor([*table, scale])"),
    "arange": (True, "h = h + sn.Tensor(np.arange(4, dtype=np.float32))"),
    "error of a global": (True, "if scale > 2.5:\n    raise ValueError('too large')"),
    "error of a shape": (True, "assert len(h) < 5, 'too long'"),
    "error caught": (True, "try:\n    h = h + F.cross_entropy(h, y)\nexcept IndexError:\n    h = h - 1"),
    "error caught of labels": (
        False,
        "try:\n    h = h + F.cross_entropy(h, b)\nexcept sn.ScratchnetError:\n    h = h - 1",
    ),
    "embedding": (True, "h = h + F.embedding(y, net.last.weight)"),
    "wide list": (True, "h = h * len(wide)"),
    "sched's rate": (True, "h = h * sched.get_last_lr()[0]"),
    "default device": (True, "h = h + sn.Tensor([1.0, 2.0, 3.0, 4.0])"),
    "time of a step": (True, "h = h * float(count)"),
}

LOSS = {
    "cross entropy": "loss = F.cross_entropy(h, y)",
    "cross entropy of an array": "loss = F.cross_entropy(h, b)",
    "smoothed": "loss = F.cross_entropy(h, y, label_smoothing=config.rate)",
    "squares": "loss = F.mse_loss(h, h.detach() * 0.5 + const)",
    "mean": "loss = (h * h).mean()",
    "sum": "loss = h.tanh().sum()",
    "largest": "loss = h.abs().max()",
}

UPDATE = {
    "plain": "opt.zero_grad()\nloss.backward()\nopt.step()",
    "scheduled": "opt.zero_grad()\nloss.backward()\nopt.step()\nsched.step()",
    "accumulated": "loss.backward()",
    "accumulated twice": "opt.zero_grad()\nloss.backward(retain_graph=True)\nloss.backward()\nopt.step()",
    "without forgetting": "loss.backward()\nopt.step()",
    "forgotten at the end": "loss.backward()\nopt.step()\nopt.zero_grad()",
    "forgotten by the module": "net.zero_grad()\nloss.backward()\nopt.step()",
    "clipped": "opt.zero_grad()\nloss.backward()\nsn.nn.utils.clip_grad_norm_(net.parameters(), 0.1)\nopt.step()",
    "by hand": (
        "opt.zero_grad()\nloss.backward()\nwith sn.no_grad():\n    for p in net.parameters():\n"
        "        if p.grad is not None:\n            p -= config.rate * p.grad"
    ),
    "ema": (
        "opt.zero_grad()\nloss.backward()\nopt.step()\nwith sn.no_grad():\n"
        "    ema.mul_(0.5).add_(net.first.weight * 0.5)"
    ),
    "gradient scaled": (
        "opt.zero_grad()\nloss.backward()\nfor p in net.parameters():\n"
        "    if p.grad is not None:\n        p.grad = p.grad * scale\nopt.step()"
    ),
    "gradient given": "opt.zero_grad()\nnet.first.weight.grad = ema * 0.5 + 1\nopt.step()",
    "decayed by hand": "opt.zero_grad()\n(loss + net.first.weight.abs().sum() * config.rate).backward()\nopt.step()",
    "rate set": "opt.zero_grad()\nloss.backward()\nopt.step()\nopt.param_groups[0]['lr'] *= 0.5",
    "every second": "loss.backward()\nif flag:\n    opt.step()\n    opt.zero_grad()",
    "step alone": "opt.step()",
    "two steps": "opt.zero_grad()\nloss.backward()\nopt.step()\nopt.step()",
    "fails afterwards": "opt.zero_grad()\nloss.backward()\nopt.step()\nF.cross_entropy(h.detach(), b)",
    "fails by python": "opt.zero_grad()\nloss.backward()\nopt.step()\nif scale > 2.5:\n    raise KeyError('late')",
    "weights clipped": (
        "opt.zero_grad()\nloss.backward()\nopt.step()\nwith sn.no_grad():\n    for p in net.parameters():\n"
        "        p.copy_(p.clip(-0.5, 0.5))"
    ),
    "gradient looked at": (
        "opt.zero_grad()\nloss.backward()\nif net.first.weight.grad is not None:\n"
        "    h = h + net.first.weight.grad.abs().max()\nopt.step()"
    ),
}

RESULT = {
    "loss": "return loss",
    "both": "return loss, h",
    "dictionary": "return {'loss': loss, 'h': h}",
    "named tuple": "return Point(loss, h)",
    "dataclass": "return Found(loss, [h, (loss,)])",
    "nothing": "return None",
    "argument": "return x",
    "argument's view": "return x.T, x[1:], x.detach()",
    "array": "return a",
    "array's view": "return a[1:], a.T",
    "array computed": "return a * 2, b",
    "numbers": "return len(h), scale, mode, h.shape, h.dtype, None",
    "objects": "return config.shift, Color.RED, np.float32(2), h",
    "object": "return config",
    "module": "return net, loss",
    "parameter": "return net.first.weight",
    "parameter detached": "return net.first.weight.detach()",
    "parameter transposed": "return net.first.weight.T",
    "constant": "return const, ema, weights",
    "gradient": "return loss, net.first.weight.grad",
    "looks": "return float(loss)",
    "numpy": "return np.asarray(h.detach())",
    "number given": "return c, flag, loss",
    "same twice": "return h, h",
    "detached": "return h.detach(), loss.detach()",
    "accuracy": "return (h.argmax(1) == y).sum()",
}

EVENTS = {  # what happens between calls; `call` functions of the world see it
    "nothing": "pass",
    "freeze": "net.first.requires_grad_(False)",
    "freeze all": "net.requires_grad_(False)",
    "thaw": "net.requires_grad_(True)",
    "freeze weight": "net.last.weight.requires_grad = not net.last.weight.requires_grad",
    "evaluation": "net.eval()",
    "training": "net.train()",
    "part in evaluation": "net.norm.eval()",
    "rate": "opt.param_groups[0]['lr'] = 0.5",
    "rate scaled": "opt.param_groups[0]['lr'] *= 0.5",
    "momentum": "opt.param_groups[0].update(weight_decay=0.1)",
    "dropout rate": "net.drop.p = 0.8",
    "norm's momentum": "net.norm.momentum = 0.5",
    "norm's eps": "net.norm.eps = 0.1",
    "gain": "net.gain = 0.5",
    "layer": "net.last = sn.nn.Linear(4, 4)",
    "activation": "net.act = sn.nn.ReLU()",
    "layers swapped": "net.first, net.last = net.last, net.first",
    "weight replaced": "net.first.weight = sn.nn.Parameter(np.ones((4, 4), np.float32))",
    "bias removed": "net.first.bias = None",
    "forward replaced": "Net.forward = lambda self, h: self.first(h)",
    "forward of one": "net.forward = lambda h: h * 0.5 + net.first(h)",
    "loaded": "net.load_state_dict(saved)",
    "loaded optimizer": "opt.load_state_dict(opt.state_dict())",
    "network copied": "net = copy.deepcopy(net)",
    "float64": "net.to(dtype='float64')",
    "other device": "net.to('numpy')",
    "group added": "opt.add_param_group({'params': list(extra.parameters()), 'lr': 0.3})",
    "optimizer": "opt = sn.optim.SGD(net.parameters(), 0.2)",
    "schedule": "sched = sn.optim.lr_scheduler.StepLR(opt, 1)",
    "schedule's step": "sched.step()",
    "schedule loaded": "sched.load_state_dict(sched.state_dict())",
    "zero grad": "opt.zero_grad()",
    "gradient forgotten": "net.first.weight.grad = None",
    "gradient set": "net.first.weight.grad = sn.Tensor(np.ones((4, 4), np.float32))",
    "gradient read": "seen = None if net.first.weight.grad is None else net.first.weight.grad.numpy().copy()",
    "gradient scaled": "net.last.bias.grad = None if net.last.bias.grad is None else net.last.bias.grad * 2",
    "update by hand": "with sn.no_grad():\n    net.first.weight -= 0.1",
    "written by numpy": "net.first.weight.detach().numpy()[0] = 0.25",
    "scale": "set_scale(3.0)",
    "scale 1": "set_scale(1.0)",
    "scale an integer": "set_scale(2)",
    "scale a boolean": "set_scale(True)",
    "scale a zero": "set_scale(0.0)",
    "scale a negative zero": "set_scale(-0.0)",
    "scale not a number": "set_scale(float('nan'))",
    "scale a tensor": "set_scale(sn.Tensor(np.float32(1.5)))",
    "scale gone": "del scale",
    "text": "mode = 'down'",
    "enum": "color = Color.BLUE",
    "number": "count = 4",
    "helper's gain": "helper_gain = 4.0",
    "helper": "helper = other_helper",
    "helper's code": "helper.__code__ = other_helper.__code__",
    "helper's default": "helper.__defaults__ = (9.0,)",
    "helper's attribute": "helper.gain = 5.0",
    "list item": "table[0] = 7.0",
    "list grown": "table.append(2.0)",
    "list": "table = [2.0, 3.0]",
    "list sorted": "table.sort()",
    "negative zero in a list": "table[0] = -0.0",
    "nested list": "nested[0][1] = 5.0",
    "dictionary": "mapping['k'] = 4.0",
    "dictionary's key": "mapping.pop('on', None)",
    "dictionary's order": "mapping['k'] = mapping.pop('k')",
    "set": "names.clear()",
    "attribute": "config.shift = 4.0",
    "bonus": "config.bonus = True",
    "attribute's list": "config.scales[0] = 9.0",
    "child's attribute": "child.shift = -2.0",
    "class attribute": "Config.factor = 3.0",
    "object's own": "config.factor = 6.0",
    "method": "Config.moved = lambda self, h: h - 1",
    "object's own method": "config.moved = lambda h: h - 2",
    "config": "config = Config(); config.shift = 8.0",
    "object's class": "config.__class__ = Child",
    "slot": "slotted.shift = 3.0",
    "called": "called.gain = 0.25",
    "frozen": "frozen = Frozen(3.0)",
    "functions": "functions['f'] = lambda h: h * 0.1",
    "partial": "partial = functools.partial(helper, by=2.0)",
    "array's item": "weights[0] = 5.0",
    "array": "weights = weights * 2",
    "negative zero in an array": "weights[:] = -0.0",
    "rows": "rows[0] = 1",
    "constant's item": "const.numpy()[0] = 3.0",
    "constant in place": "with sn.no_grad():\n    const += 1",
    "constant": "const = sn.Tensor(np.full(4, 2.0, np.float32))",
    "constant longer": "const = sn.Tensor(np.full((1, 4), 2.0, np.float32))",
    "trained": "trained.requires_grad = not trained.requires_grad",
    "seed": "sn.manual_seed(7)",
    "numpy's seed": "np.random.seed(3)",
    "python's seed": "random.seed(3)",
    "threads": "sn.set_num_threads(1)",
    "more threads": "sn.set_num_threads(2)",
    "inner called": "inner(const)",
    "wide": "wide.append(5)",
    "history": "history.append(0)",
    "patched": "F_relu = net.act; net.act = net.drop; net.drop = F_relu",
}

SHAPES = {  # of a function: its head, and what comes after
    "function": ("@jit\ndef {name}(x, y, a, b, c=1.0, flag=None):\n{body}\n", ""),
    "closure": (
        "def make(scale, helper_gain):\n    @jit\n    def {name}(x, y, a, b, c=1.0, flag=None):\n{body}\n"
        "    def set_scale(value):\n        nonlocal scale\n        scale = value\n    return {name}, set_scale\n",
        "{name}, set_scale = make(2.0, 1.5)\n",
    ),
    "method": (
        "class Work{name}:\n    def __init__(self):\n        self.gain = 0.5\n"
        "    @jit\n    def {name}(self, x, y, a, b, c=1.0, flag=None):\n{body}\n",
        "work_{name} = Work{name}()\ndef {name}(*args, **kwargs):\n    return work_{name}.{name}(*args, **kwargs)\n",
    ),
    "no grad": ("@jit\n@sn.no_grad()\ndef {name}(x, y, a, b, c=1.0, flag=None):\n{body}\n", ""),
    "default": ("@jit\ndef {name}(x, y, a, b, c=1.0, flag=None, table=table, config=config):\n{body}\n", ""),
}


def _arrays(rng: Any, n: int = 3, columns: int = 4) -> dict[str, Any]:
    x, a = rng.standard_normal((2, n, columns)).astype(np.float32)
    labels = rng.integers(0, 4, (2, n))
    return {"x": x, "y": labels[0], "a": a, "b": labels[1]}


def _changed(**changes: Any) -> Any:
    def make(rng: Any, world: dict[str, Any]) -> dict[str, Any]:
        given = _arrays(rng)
        return given | {k: change(given, world) if callable(change) else change for k, change in changes.items()}

    return make


def _readonly(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


def _replaced(name: str, at: Any, value: Any) -> Any:
    def change(given: dict[str, Any], world: dict[str, Any]) -> np.ndarray:
        given[name][at] = value
        return given[name]

    return change


def _overlapping(rng: Any, world: dict[str, Any]) -> dict[str, Any]:
    given, base = _arrays(rng), rng.standard_normal((4, 4)).astype(np.float32)
    return given | {"x": base[:3], "a": base[1:]}


ARGUMENTS: dict[str, Any] = {  # arrays and numbers; x and y become tensors
    "usual": _changed(),
    "longer": lambda rng, world: _arrays(rng, 5),
    "one": lambda rng, world: _arrays(rng, 1),
    "none": lambda rng, world: _arrays(rng, 0),
    "too wide": lambda rng, world: _arrays(rng, 3, 5),
    "columns": _changed(x=lambda g, w: np.asfortranarray(g["x"]), a=lambda g, w: np.asfortranarray(g["a"])),
    "reversed": _changed(x=lambda g, w: g["x"][::-1], a=lambda g, w: g["a"][:, ::-1], y=lambda g, w: g["y"][::-1]),
    "every second": _changed(x=lambda g, w: np.repeat(g["x"], 2, 1)[:, ::2], b=lambda g, w: np.repeat(g["b"], 2)[::2]),
    "repeated": _changed(
        x=lambda g, w: np.broadcast_to(g["x"][0], (3, 4)), a=lambda g, w: np.broadcast_to(g["a"][0], (3, 4))
    ),
    "read only": _changed(x=lambda g, w: _readonly(g["x"]), a=lambda g, w: _readonly(g["a"])),
    "not a number": _changed(x=_replaced("x", 0, np.nan), a=_replaced("a", 1, np.nan)),
    "negative zeros": _changed(x=_replaced("x", slice(None), -0.0), a=_replaced("a", slice(None), -0.0), c=-0.0),
    "zeros": _changed(a=_replaced("a", slice(None), 0.0), c=0.0),
    "number": _changed(c=2.5),
    "not a number c": _changed(c=float("nan")),
    "integer": _changed(c=1),
    "boolean": _changed(c=True),
    "numpy number": _changed(c=np.float32(1)),
    "numpy double": _changed(c=np.float64(1)),
    "flag": _changed(flag=True),
    "flag 1": _changed(flag=1),
    "text": _changed(flag="up"),
    "flag list": _changed(flag=[1, 2]),
    "flag object": _changed(flag=lambda g, w: w["config"]),
    "flag function": _changed(flag=lambda g, w: w["helper"]),
    "float64": _changed(x=lambda g, w: g["x"].astype(np.float64)),
    "float64 a": _changed(a=lambda g, w: g["a"].astype(np.float64)),
    "integers a": _changed(a=lambda g, w: g["a"].astype(np.int64)),
    "big-endian": _changed(a=lambda g, w: g["a"].astype(">f4")),
    "int32 labels": _changed(y=lambda g, w: g["y"].astype(np.int32), b=lambda g, w: g["b"].astype(np.int32)),
    "uint8 labels": _changed(y=lambda g, w: g["y"].astype(np.uint8), b=lambda g, w: g["b"].astype(np.uint8)),
    "bad label": _changed(y=_replaced("y", -1, 4)),
    "bad array label": _changed(b=_replaced("b", 0, 9)),
    "negative label": _changed(y=_replaced("y", 0, -1)),
    "float labels": _changed(y=lambda g, w: g["y"].astype(np.float32)),
    "fewer labels": _changed(y=lambda g, w: g["y"][:2]),
    "list of labels": _changed(b=lambda g, w: g["b"].tolist()),
    "no array": _changed(a=None),
    "same array": _changed(x=lambda g, w: g["a"]),
    "same labels": _changed(y=lambda g, w: g["b"]),
    "overlapping": _overlapping,
    "view of the other": _changed(a=lambda g, w: g["x"][:]),
    "the constant": _changed(x=lambda g, w: w["const"]),
    "the constant's array": _changed(a=lambda g, w: w["const"].numpy() if not w["const"].requires_grad else g["a"]),
    "the weights": _changed(a=lambda g, w: w["weights"]),
    "a parameter": _changed(x=lambda g, w: w["net"].first.weight),
    "a parameter's memory": _changed(x=lambda g, w: w["net"].first.weight.detach(), y=lambda g, w: np.arange(4)),
    "a parameter's array": _changed(a=lambda g, w: w["net"].first.weight.detach().numpy()[0]),
    "x an array": _changed(x=lambda g, w: _Raw(g["x"])),
    "y an array": _changed(y=lambda g, w: _Raw(g["y"])),
    "a a tensor": _changed(a=lambda g, w: Tensor(g["a"])),
    "requires grad": _changed(x=lambda g, w: Tensor(g["x"], requires_grad=True)),
}


class _Raw(NamedTuple):
    """An array that does not become a tensor."""

    array: np.ndarray


class Function(NamedTuple):
    """hidden, ..., result: names of pieces, in the order in which they run."""

    shape: str
    hidden: tuple[str, ...]
    loss: str | None
    update: str | None
    result: str

    def source(self, name: str) -> str:
        pieces = ["h = x", *[HIDDEN[piece][1] for piece in self.hidden]]
        pieces += [LOSS[self.loss]] if self.loss else ["loss = None"]
        pieces += [UPDATE[self.update]] if self.update else []
        lines = [line for piece in [*pieces, RESULT[self.result]] for line in piece.split("\n")]
        head, tail = SHAPES[self.shape]
        depth = 8 if self.shape in ("closure", "method") else 4
        return (head + tail).replace("{name}", name).replace("{body}", "\n".join(" " * depth + line for line in lines))


class Call(NamedTuple):
    """One call of a function: its number, its arguments, the events before it and what it runs in."""

    function: int = 0
    arguments: str = "usual"
    events: tuple[str, ...] = ()
    inside: str = ""  # "no_grad", "numpy": the default device; "keywords"


OPTIMIZERS = (
    "sn.optim.SGD(net.parameters(), 0.1)", "sn.optim.SGD(net.parameters(), 0.1, momentum=0.9)",
    "sn.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)",
    "sn.optim.Adam(net.parameters(), 0.01)", "sn.optim.RMSprop(net.parameters(), 0.01)",
    "sn.optim.AdamW([{'params': list(net.first.parameters()), 'lr': 0.02}, {'params': list(net.last.parameters())}])",
)  # fmt: skip
SCHEDULES = "StepLR(opt, 2)", "LinearLR(opt, 0.5, total_iters=3)", "CosineAnnealingLR(opt, 10)"
INSIDE = ("",) * 8 + ("no_grad", "numpy", "keywords")


class Program(NamedTuple):
    functions: tuple[Function, ...]
    calls: tuple[Call, ...]
    optimizer: str = OPTIMIZERS[1]
    schedule: str = SCHEDULES[0]

    def source(self) -> str:
        """What the two worlds run after WORLD, as text."""
        return "\n".join(f.source(f"step_{i}") for i, f in enumerate(self.functions))

    def __str__(self) -> str:
        lines = [
            f"    events {call.events}, then step_{call.function}({call.arguments}) {call.inside}"
            for call in self.calls
        ]
        return "\n".join([f"optimizer = {self.optimizer}; {self.schedule}", self.source(), *lines])


def drawn(seed: int) -> Program:
    """The program of a seed."""
    rng = python_random.Random(seed)

    def function(shape: str) -> Function:
        hidden = [rng.choice(GOOD if rng.random() < 0.9 else list(HIDDEN)) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.6:
            hidden.insert(rng.randint(0, len(hidden)), "network")
        loss = rng.choice(list(LOSS)) if rng.random() < 0.8 else None
        update = rng.choice([*UPDATE, "plain", "scheduled"]) if loss and rng.random() < 0.8 else None
        result = rng.choice([*RESULT, "loss", "both", "dictionary"])
        return Function(shape, tuple(hidden), loss, update, result)

    shapes = ["function"] * 4 + list(SHAPES)
    functions = [function(rng.choice(shapes)) for _ in range(1 + (rng.random() < 0.3))]
    usual = rng.choice(list(ARGUMENTS)) if rng.random() < 0.2 else "usual"
    calls = []
    for i in range(rng.randint(5, 8)):
        arguments = usual if i < 3 or rng.random() < 0.6 else rng.choice(list(ARGUMENTS))
        events = [rng.choice(list(EVENTS)) for _ in range(rng.choice([0, 0, 1, 1, 2]))] if i > 1 else []
        calls.append(Call(rng.randrange(len(functions)), arguments, tuple(events), rng.choice(INSIDE) if i > 1 else ""))
    return Program(tuple(functions), tuple(calls), rng.choice(OPTIMIZERS), rng.choice(SCHEDULES))


GOOD = [name for name, (is_replayed, _) in HIDDEN.items() if is_replayed]


# --- running ----------------------------------------------------------------------------------------------------------


class World:
    """All that a program can reach, with functions that are recorded or not."""

    def __init__(self, program: Program, jit: bool):
        self.seeds: Any = (0, 0), np.random.RandomState(0).get_state(), python_random.Random(0).getstate()
        decorate = sn.jit if jit else lambda f: f
        module = sys.modules["a_program"] = types.ModuleType("a_program")
        self.names = vars(module)
        self.names["jit"] = decorate
        with self:
            source = WORLD.format(optimizer=program.optimizer, schedule=program.schedule)
            exec(_code(source, "world.py"), self.names)
            exec(_code(program.source(), "program.py"), self.names)
        self.steps = [self._found(f"step_{i}") for i in range(len(program.functions))] if jit else []
        self.results: list[tuple[Tensor, Any]] = []

    def _found(self, name: str) -> Any:
        work = self.names.get(f"work_{name}")
        return self.names[name] if work is None else getattr(work, name)

    def __enter__(self) -> None:
        """The random numbers of the process are those of this world."""
        (random._default.seed, random._default.stream), numpys, pythons = self.seeds
        np.random.set_state(numpys)  # noqa: NPY002
        python_random.setstate(pythons)

    def __exit__(self, *exc_info: Any) -> None:
        numpys = np.random.get_state()  # noqa: NPY002
        self.seeds = (random._default.seed, random._default.stream), numpys, python_random.getstate()

    def run(self, call: Call, number: int) -> tuple[Any, Any]:
        """What a call gives, frozen: (the result or the error, the arguments); raises JitError."""
        with self, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for event in call.events:
                try:
                    exec(_code(EVENTS[event], f"event {event}"), self.names)
                except sn.JitError:
                    raise
                except Exception:
                    pass
            given = ARGUMENTS[call.arguments](np.random.default_rng(number), self.names)
            for name in ("x", "y"):
                value = given[name]
                given[name] = (
                    value.array if type(value) is _Raw else value if isinstance(value, Tensor) else Tensor(value)
                )
            step = self.names[f"step_{call.function}"]
            positional = [] if call.inside == "keywords" else [given.pop(name) for name in ("x", "y", "a", "b")]
            mode: Any = contextlib.nullcontext()
            if call.inside == "no_grad":
                mode = sn.no_grad()
            elif call.inside == "numpy":
                mode = sn.default_device("numpy")
            try:
                with mode:
                    result = step(*positional, **given)
            except sn.JitError:
                raise
            except Exception as error:
                return ("error", type(error).__name__, str(error)), frozen([positional, given])
            self.results += [(t, frozen(t)) for t in _tensors(result) if type(t) is Tensor]
            return ("result", frozen(result, is_result=True)), frozen([positional, given])

    def state(self) -> Any:
        """All that the world holds, frozen."""
        world = {k: frozen(v) for k, v in self.names.items() if not k.startswith("__") and k not in ("jit", "inner")}
        _, words, *rest = self.seeds[1]
        drawn = self.seeds[0], words.tobytes(), tuple(rest), hash(self.seeds[2])
        return world | dict(zip(("generator", "numpy", "numpy's normals", "python"), drawn, strict=True))


_codes: dict[tuple[str, str], Any] = {}


def _code(source: str, name: str) -> Any:
    key = source, name
    if key not in _codes:
        if len(_codes) > 500:
            _codes.clear()
        _codes[key] = compile(source, f"/somewhere/{name}", "exec")
    return _codes[key]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    return [t for item in value for t in _tensors(item)] if isinstance(value, tuple | list) else []


SKIPPED = object()  # equal to everything


def frozen(value: Any, is_result: bool = False, depth: int = 0) -> Any:
    """A value that another one can be compared with, of the same bits and structure."""
    if depth > 8:
        return "..."
    again = lambda item: frozen(item, is_result, depth + 1)  # noqa: E731
    if isinstance(value, Tensor):
        data = type(value).__name__, value.shape, str(value.dtype), value._device.name, value._data.tobytes()
        grad = SKIPPED if is_result or value._grad is USED_UP else None if value._grad is None else again(value._grad)
        return (*data, grad, SKIPPED if is_result else value._requires_grad)
    if isinstance(value, np.ndarray):
        return type(value).__name__, value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, float | complex | np.generic):
        packed = struct.pack("d", value) if isinstance(value, float) else np.asarray(value).tobytes()
        return type(value).__name__, packed
    if isinstance(value, Module):
        return type(value).__name__, [
            (k, again(v)) for k, v in vars(value).items() if not callable(v) or isinstance(v, Module)
        ]
    if isinstance(value, Optimizer):
        states = [(s.step, [x.tobytes() for x in s.arrays]) for s in value.states]
        return states, [[(k, again(v)) for k, v in dict(g).items() if k != "params"] for g in value.param_groups]
    if isinstance(value, LRScheduler):
        return value.last_step, again(value.base_lrs)
    if isinstance(value, random.Generator):
        return value.seed, value.stream
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, dict):
        return type(value).__name__, [(k, again(v)) for k, v in value.items()]
    if isinstance(value, list) and len(value) > 100:
        return repr(value)
    if isinstance(value, tuple | list):
        return type(value).__name__, [again(item) for item in value]
    if isinstance(value, int | str | bytes | None | set | range):
        return type(value).__name__, value
    if isinstance(value, type) or callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if dataclasses.is_dataclass(value) or type(value).__module__ == "a_program":
        return type(value).__name__, [(k, again(v)) for k, v in getattr(value, "__dict__", {}).items()]
    return type(value).__name__


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """The first place at which two frozen values are not the same."""
    if a is SKIPPED or b is SKIPPED:
        return None
    if type(a) is not type(b):
        return f"{where}: {a!r:.90} and {b!r:.90}"
    if isinstance(a, dict):
        a, b = list(a.items()), list(b.items())
    if isinstance(a, tuple | list):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} items: {a!r:.120} and {b!r:.120}"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            label = a[0] if isinstance(a, tuple) and len(a) == 2 and i and isinstance(a[0], str) else i
            if (found := difference(x, y, f"{where}.{label}")) is not None:
                return found
        return None
    return None if a == b else f"{where}: {_shown(a)} and {_shown(b)}"


def _shown(value: Any) -> str:
    if isinstance(value, bytes) and value and len(value) % 4 == 0:
        return f"{np.frombuffer(value, np.float32)!s:.100}"
    return f"{value!r:.100}"


class Outcome(NamedTuple):
    """difference: None if both worlds stayed the same. refused: the JitError that ended it, if any."""

    difference: str | None
    refused: str | None
    replays: int


def compare(program: Program) -> Outcome:
    """Runs a program in both worlds."""
    threads = sn.get_num_threads()
    try:
        plain, recorded = World(program, False), World(program, True)
        refused = None
        for number, call in enumerate(program.calls):
            expected = plain.run(call, number)
            try:
                found = recorded.run(call, number)
            except sn.JitError as error:
                refused = str(error)
                break
            what = difference(expected, found, f"call {number}") or difference(
                plain.state(), recorded.state(), f"after call {number}"
            )
            if what is not None:
                return Outcome(what, None, 0)
        if not any(step._is_plain for step in recorded.steps):
            for t, before in recorded.results:
                if (what := difference(before[:5], frozen(t)[:5], "an earlier result")) is not None:
                    return Outcome(what, None, 0)
        return Outcome(None, refused, sum(len(step.programs) for step in recorded.steps))
    finally:
        sn.set_num_threads(threads)


SIMPLE = "nothing", "loss", "both"


def smallest(program: Program) -> Program:
    """A program that differs, with what does not matter left out."""

    def candidates(p: Program) -> Any:
        for i in reversed(range(len(p.calls))):
            yield p._replace(calls=p.calls[:i] + p.calls[i + 1 :])
        for i, call in enumerate(p.calls):
            for j in range(len(call.events)):
                new = call._replace(events=call.events[:j] + call.events[j + 1 :])
                yield p._replace(calls=(*p.calls[:i], new, *p.calls[i + 1 :]))
            if call.arguments != "usual":
                yield p._replace(calls=(*p.calls[:i], call._replace(arguments="usual"), *p.calls[i + 1 :]))
            if call.inside:
                yield p._replace(calls=(*p.calls[:i], call._replace(inside=""), *p.calls[i + 1 :]))
        for i, f in enumerate(p.functions):
            simpler = [f._replace(hidden=f.hidden[:j] + f.hidden[j + 1 :]) for j in range(len(f.hidden))]
            simpler += [f._replace(update=None)] if f.update else []
            simpler += [f._replace(loss=None, update=None)] if f.loss else []
            simpler += [f._replace(update="plain")] if f.update not in (None, "plain") else []
            simpler += [
                f._replace(result=r) for r in ("nothing", "loss", "both") if f.result not in ("nothing", "loss", "both")
            ]
            simpler += [f._replace(shape="function")] if f.shape != "function" else []
            for new in simpler:
                yield p._replace(functions=(*p.functions[:i], new, *p.functions[i + 1 :]))
        if len(p.functions) > 1 and all(c.function == 0 for c in p.calls):
            yield p._replace(functions=p.functions[:1])
        if len(p.functions) > 1 and all(c.function == 1 for c in p.calls):
            yield p._replace(functions=p.functions[1:], calls=tuple(c._replace(function=0) for c in p.calls))
        if p.optimizer != OPTIMIZERS[1]:
            yield p._replace(optimizer=OPTIMIZERS[1])

    while True:
        for candidate in candidates(program):
            try:
                differs = compare(candidate).difference is not None
            except Exception:
                differs = False
            if differs:
                program = candidate
                break
        else:
            return program
