"""Module: what counts as a parameter, state dicts and their refusals, modes, copies, printing."""

import copy
import pickle

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.nn import Buffer, Linear, Module, Parameter, ReLU, Sequential


class Block(Module):
    """One of everything: a parameter, a buffer, a module, an absent one, and attributes that do not count."""

    def __init__(self):
        self.scale = Parameter(np.array([2.0, 3.0], np.float32))
        self.register_buffer("count", np.zeros((), np.int64))
        self.inner = Linear(2, 3)
        self.absent = None
        self.plain = sn.Tensor([1.0])
        self.listed = [Linear(1, 1)]

    def forward(self, x):
        return self.inner(x * self.scale)


NAMES = ["scale", "count", "inner.weight", "inner.bias"]


def tied():
    """Two layers that share one weight; the second layer stands there twice."""
    first, second = Linear(2, 2), Linear(2, 2)
    second.weight = first.weight
    return Sequential(first, second, second)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_parameters_buffers_and_modules_are_found_by_dotted_name():
    block = Block()
    assert [name for name, _ in block.named_parameters()] == ["scale", "inner.weight", "inner.bias"]
    assert [name for name, _ in block.named_buffers()] == ["count"]
    assert [name for name, _ in block.named_modules()] == ["", "inner"]
    assert list(block.state_dict()) == NAMES
    assert next(iter(block.parameters())) is block.scale and list(block.buffers()) == [block.count]
    assert list(block.children()) == [block.inner] and list(block.modules()) == [block, block.inner]


def test_shared_parameters_and_modules_count_once_under_their_first_name():
    model = tied()
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert [name for name, _ in model.named_modules()] == ["", "0", "1"]
    assert len(list(model.children())) == 2
    assert len(list(sn.optim.SGD(model.parameters(), 0.1).param_groups[0]["params"])) == 3


def test_a_module_inside_itself_is_walked_once():
    block = Block()
    block.inner.outer = block
    assert len(list(block.modules())) == 2


def test_super_init_may_be_called_or_left_out():
    class WithSuper(Module):
        def __init__(self):
            super().__init__()
            self.w = Parameter([1.0])

    assert len(list(WithSuper().parameters())) == 1


def test_parameters_require_grad_and_have_memory_of_their_own():
    array = np.arange(6, dtype=np.float64).reshape(2, 3).T
    p = Parameter(array)
    assert p.requires_grad and p.is_leaf and p.dtype == np.float64
    assert p._data.flags.c_contiguous and not np.shares_memory(p._data, array)
    assert not Parameter(array, requires_grad=False).requires_grad
    with pytest.raises(sn.DtypeError):
        Parameter([1, 2])


def test_a_leaf_that_would_not_be_trained_is_refused():
    with pytest.raises(sn.ConfigError, match=r"^Block.extra: expected a Parameter, got .*; nn.Parameter\(...\) is"):
        Block().extra = sn.Tensor([1.0], requires_grad=True)


def test_the_result_of_an_op_on_a_parameter_is_no_parameter():
    block = Block()
    block.doubled = block.scale * 2
    assert "doubled" not in dict(block.named_parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", sn.Tensor([1.0, 2.0])), ("scale", 1.0), ("count", np.zeros(())), ("inner", ReLU), ("inner", "relu")],
)
def test_replacing_what_is_registered_by_something_else_is_refused(name, value):
    block = Block()
    before = getattr(block, name)
    with pytest.raises(sn.ConfigError, match=rf"^Block.{name}: expected a \w+ or None, got \w+$"):
        setattr(block, name, value)
    assert getattr(block, name) is before


def test_registered_attributes_can_be_replaced_by_their_kind_or_none_or_deleted():
    block = Block()
    block.scale = Parameter([1.0])
    block.count = sn.Tensor([7])  # a tensor in the place of a buffer becomes one
    block.inner = None
    assert list(block.state_dict()) == ["scale", "count"] and isinstance(block.count, Buffer)
    del block.scale
    assert list(block.state_dict()) == ["count"]


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module: expected a method forward"):
        Module()(1)


# --- state -----------------------------------------------------------------------------------------------------------


def test_an_argument_may_have_any_name():
    class Named(Module):
        def forward(this, **given):  # as of a dict of samples
            return given["self"] * 2

    assert Named()(**{"self": sn.Tensor([3.0])}).tolist() == [6.0]


def test_a_state_dict_holds_copies():
    block = Block()
    state = block.state_dict()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    state["scale"][:] = 0
    np.testing.assert_array_equal(block.scale.detach().numpy(), [2, 3])


def test_a_loaded_state_is_written_into_the_same_arrays():
    block, other = Block(), Block()
    memory = [p._data for p in block.parameters()]
    result = block.load_state_dict(other.state_dict())
    assert result == ([], []) and same(block.state_dict(), other.state_dict())
    assert all(p._data is array for p, array in zip(block.parameters(), memory, strict=True))
    block.load_state_dict({name: sn.Tensor(array) for name, array in Block().state_dict().items()})


def test_backward_through_a_graph_from_before_the_load_raises():
    block = Block()
    y = block(np.ones((1, 2), np.float32)).sum()
    block.load_state_dict(Block().state_dict())
    with pytest.raises(sn.GradientError, match="changed in place"):
        y.backward()


def test_a_state_goes_through_a_checkpoint(tmp_path):
    block, other = Block(), Block()
    sn.save(tmp_path / "c", model=block)
    other.load_state_dict(sn.load(tmp_path / "c")["model"])
    assert same(block.state_dict(), other.state_dict())


def test_every_difference_is_named_and_nothing_is_loaded():
    block = Block()
    before, state = block.state_dict(), Block().state_dict()
    del state["inner.bias"]
    state |= {"extra": np.zeros(1), "scale": np.zeros(3, np.float32), "count": np.zeros((), np.int32)}
    with pytest.raises(sn.CheckpointError) as caught:
        block.load_state_dict(state)
    assert str(caught.value) == (
        "Block: state dict does not fit: missing inner.bias; unexpected extra; "
        "scale: expected float32 (2,), got float32 (3,); count: expected int64 (), got int32 ()"
    )
    assert same(block.state_dict(), before)


def test_without_strict_names_may_differ_but_shapes_may_not():
    block, state = Block(), Block().state_dict()
    del state["inner.bias"]
    state["extra"] = np.zeros(1)
    result = block.load_state_dict(state, strict=False)
    assert result.missing_keys == ["inner.bias"] and result.unexpected_keys == ["extra"]
    np.testing.assert_array_equal(block.inner.weight.detach().numpy(), state["inner.weight"])
    with pytest.raises(sn.CheckpointError, match="scale"):
        block.load_state_dict({"scale": np.zeros(3, np.float32)}, strict=False)


@pytest.mark.parametrize("state", [None, [], "weights", np.zeros(3)])
def test_a_state_that_is_no_dict_is_refused(state):
    with pytest.raises(sn.CheckpointError, match=r"^Block: expected a state dict, got"):
        Block().load_state_dict(state)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_independent_and_keep_what_is_shared(way):
    model = Sequential(Block(), tied()).eval()
    twin = way(model)
    assert same(model.state_dict(), twin.state_dict()) and repr(model) == repr(twin)
    assert not any(module.training for module in twin.modules())
    assert all(isinstance(p, Parameter) and p.requires_grad for p in twin.parameters())
    assert twin[1][0].weight is twin[1][1].weight and twin[1][1] is twin[1][2]
    x = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(twin[0](x).detach().numpy(), model[0](x).detach().numpy())
    for p in twin.parameters():
        p._data[...] = 0
    assert not same(model.state_dict(), twin.state_dict())


# --- modes, moves, gradients -----------------------------------------------------------------------------------------


def test_train_and_eval_reach_every_module():
    model = Sequential(Block(), Sequential(ReLU()))
    assert all(module.training for module in model.modules())
    assert model.eval() is model and not any(module.training for module in model.modules())
    assert model.train() is model and all(module.training for module in model.modules())
    assert Block().training  # a mode belongs to the instance


def test_zero_grad_forgets_and_requires_grad_freezes():
    block, x = Block(), np.ones((1, 2), np.float32)
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())
    assert block.requires_grad_(False) is block
    assert not block(x).requires_grad
    assert block.requires_grad_()(x).requires_grad


def test_to_moves_everything_to_a_device():
    block, x = Block(), np.ones((1, 2), np.float32)
    block(x).sum().backward()
    parameters, weights = list(block.parameters()), block.state_dict()
    other = "numpy" if block.scale.device == "cpu" else "cpu"
    assert block.to(other) is block
    assert list(block.parameters()) == parameters  # the same objects, as an optimizer holds them
    assert {t.device for t in (*block.parameters(), *block.buffers())} == {other}
    assert {p.grad.device for p in block.parameters()} == {other}
    assert same(block.state_dict(), weights)
    assert block(sn.Tensor(x, device=other)).device == other
    with pytest.raises(sn.DeviceError, match="'tpu'"):
        block.to("tpu")


def test_to_converts_floats_and_leaves_integers():
    block, x = Block(), np.ones((1, 2), np.float32)
    block(x).sum().backward()
    block.to(dtype=np.float64)
    assert {name: array.dtype.name for name, array in block.state_dict().items()} == {
        name: "int64" if name == "count" else "float64" for name in NAMES
    }
    assert {p.grad.dtype.name for p in block.parameters()} == {"float64"}
    assert all(p.is_leaf and p.requires_grad for p in block.parameters())
    assert block(np.ones((1, 2))).dtype == np.float64
    for bad in (np.complex64, np.int64):
        with pytest.raises(sn.ConfigError, match="expected bfloat16, float16, float32, float64, got"):
            block.to(dtype=bad)


def test_zero_grad_may_fill_with_0():
    block, x = Block(), np.ones((1, 2), np.float32)
    block.zero_grad(set_to_none=False)
    assert all(p.grad is None for p in block.parameters())
    block(x).sum().backward()
    held = [p.grad for p in block.parameters()]
    block.zero_grad(set_to_none=False)
    assert all(p.grad is g and not g.numpy().any() for p, g in zip(block.parameters(), held, strict=True))


def test_float_and_double_convert_and_cpu_moves():
    block = Block()
    assert block.double() is block and block.scale.dtype == np.float64 and block.float().scale.dtype == np.float32
    assert block.to("numpy").cpu() is block and block.scale.device == "cpu"
    assert [*block.state_dict()].count("count") == 1 and block.count.dtype == np.int64


def test_what_is_inside_is_found_by_its_dotted_name():
    model = Sequential(Block(), ReLU())
    block = model.get_submodule("0")
    assert block is model[0] and model.get_submodule("") is model and model.get_submodule("0.inner") is block.inner
    assert model.get_parameter("0.inner.weight") is block.inner.weight and model.get_buffer("0.count") is block.count
    assert [name for name, _ in model.named_children()] == ["0", "1"]
    for get, target in [
        (model.get_submodule, "0.outer"), (model.get_submodule, "0.scale"), (model.get_parameter, "0.count"),
        (model.get_parameter, ""), (model.get_buffer, "0.inner.weight"), (model.get_submodule, "0.inner.weight.T"),
    ]:  # fmt: skip
        with pytest.raises(sn.UnknownAttributeError, match=r"expected the name of a \w+ in Sequential, got"):
            get(target)
        with pytest.raises(sn.ConfigError, match=r"get_\w+: expected a dotted name, got 0"):
            get(0)


def test_what_is_registered_is_an_attribute():
    module = sn.nn.Module()
    module.register_parameter("scale", Parameter([1.0]))
    module.register_parameter("shift", None)
    module.register_buffer("count", None)
    module.add_module("inner", ReLU())
    assert [*module.state_dict()] == ["scale"] and module.shift is None and module.count is None
    module.shift, module.count = Parameter([2.0]), sn.nn.Buffer([3.0])
    assert [*module.state_dict()] == ["scale", "shift", "count"] and isinstance(module.inner, ReLU)
    for register, value in [
        (module.register_parameter, sn.Tensor([1.0])), (module.add_module, ReLU), (module.register_buffer, "a"),
    ]:  # fmt: skip
        with pytest.raises(sn.ScratchnetError, match="expected"):
            register("other", value)
    with pytest.raises(sn.ConfigError, match="register_parameter: expected a new name"):
        module.register_parameter("forward", None)


def test_apply_visits_inner_modules_first():
    seen, model = [], Sequential(Block(), ReLU())
    assert model.apply(seen.append) is model
    assert [type(module).__name__ for module in seen] == ["Linear", "Block", "ReLU", "Sequential"]


# --- printing --------------------------------------------------------------------------------------------------------


def test_a_module_prints_as_a_tree():
    assert repr(Sequential(Block(), ReLU())) == (
        "Sequential(\n"
        "  (0): Block(\n"
        "    (inner): Linear(in_features=2, out_features=3, bias=True)\n"
        "  )\n"
        "  (1): ReLU()\n"
        ")"
    )


def test_a_parameter_prints_as_one():
    assert repr(Parameter([1.0])).startswith("Parameter containing:\nTensor([1.]")


@pytest.mark.parametrize(("own", "other"), [("float32", "float64"), ("float64", "float32")])
def test_a_layer_casts_its_input_to_its_own_type_and_says_so_in_one_sentence(own, other):
    x = np.linspace(-1, 1, 6).reshape(2, 3).astype(other)
    layers = Sequential(Linear(3, 3), sn.nn.LayerNorm(3), Linear(3, 2)).to("numpy", own)
    expected = layers(x.astype(own)).detach().numpy()
    for given in (x, sn.Tensor(x, device="numpy")):
        with pytest.warns(UserWarning, match=rf"Linear: its input is {other} .* cast to {own}; x.astype") as said:
            np.testing.assert_array_equal(layers(given).detach().numpy(), expected)
        assert len(said) == 1  # what the first layer gives has the right type
    leaf = sn.Tensor(x, requires_grad=True, device="numpy")
    with pytest.warns(UserWarning):
        layers(leaf).sum().backward()
    assert leaf.grad.dtype == other


def test_an_error_of_dtype_that_no_cast_mends_stays_one():
    class Both(Module):
        def __init__(self):
            self.a, self.b = Parameter(np.ones(2, np.float32)), Parameter(np.ones(2))

        def forward(self, x):
            return x * self.a * self.b

    with pytest.raises(sn.DtypeError, match="expected one float dtype"):
        Both()(np.ones(2))
    with pytest.raises(sn.DtypeError, match="expected one float dtype"):
        sn.tensor(np.ones(2)) * sn.tensor(np.ones(2, np.float32))


def test_a_gradient_through_weights_that_were_moved_meanwhile_is_refused():
    layer = Linear(3, 2)
    loss = layer(sn.Tensor(np.ones((1, 3), np.float32), requires_grad=True)).sum()
    layer.to(dtype="float64")
    with pytest.raises(sn.GradientError, match="in place"):
        loss.backward()
