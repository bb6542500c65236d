"""Hooks of modules: before and after `forward`, and with gradients; recorded steps and workers refuse them."""

import copy

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn
from scratchnet import nn

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def model():
    sn.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def test_a_forward_hook_sees_what_goes_in_and_comes_out():
    net, seen = model(), {}
    handles = [m.register_forward_hook(lambda m, a, y, n=n: seen.update({n: (a, y)})) for n, m in net.named_children()]
    y = net(X)
    assert [*seen] == ["0", "1", "2"] and seen["2"][1] is not None
    assert seen["0"][1].numpy is not None and seen["1"][0] == (seen["0"][1],)
    np.testing.assert_array_equal(seen["2"][1].detach().numpy(), y.detach().numpy())
    seen.clear()
    [handle.remove() for handle in handles]
    net(X)
    assert not seen


def test_hooks_change_arguments_and_outputs():
    layer = nn.Identity()
    layer.register_forward_pre_hook(lambda m, args: args[0] + 1)
    layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    with layer.register_forward_hook(lambda m, args, y: y - 0.5):
        assert layer(sn.Tensor([3.0])).item() == 7.5
    assert layer(sn.Tensor([3.0])).item() == 8


def test_a_backward_hook_sees_the_gradients_of_input_and_output(device):
    net, seen = model().to(device), []
    net[2].register_full_backward_hook(lambda m, inputs, outputs: seen.append((inputs[0], outputs[0])))
    net[0].register_full_backward_hook(lambda m, inputs, outputs: seen.append((inputs, outputs[0])))
    x = sn.Tensor(X, device=device)
    hidden = net[1](net[0](x))
    y = net[2](hidden)
    (y * y).sum().backward()
    (of_input, of_output), (of_no_input, of_first) = seen
    np.testing.assert_allclose(of_output.numpy(), 2 * y.detach().numpy(), rtol=1e-6)
    expected = of_output.numpy() @ net[2].weight.detach().numpy().T
    np.testing.assert_allclose(of_input.numpy(), expected, rtol=1e-5)
    assert of_no_input == (None,)
    np.testing.assert_allclose(of_first.numpy(), expected * (hidden.detach().numpy() > 0), rtol=1e-5)


def test_a_backward_hook_sees_this_call_alone_and_may_change_what_is_passed_on():
    layer, x = nn.Linear(4, 4), sn.Tensor(X, requires_grad=True)
    (layer(x).sum() + x.sum()).backward()
    expected = x.grad.numpy() - 1
    x.zero_grad()
    layer.register_full_backward_hook(lambda m, inputs, outputs: (inputs[0] * 2,))
    (layer(x).sum() + x.sum()).backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * expected + 1, rtol=1e-5)
    with sn.no_grad():
        layer(x)


def test_hooks_travel_with_a_copy():
    layer = nn.Identity()
    layer.register_forward_hook(lambda m, args, y: y * 2)
    assert copy.deepcopy(layer)(sn.Tensor([1.0])).item() == 2 and "_hooks" not in layer.state_dict()


class Two(nn.Module):
    def forward(self, a, b):
        return a, b


def test_a_backward_hook_refuses_what_it_cannot_watch():
    two, x = Two(), sn.Tensor([1.0], requires_grad=True)
    two.register_full_backward_hook(lambda *given: None)
    for arguments, message in [((x, x), "one tensor that requires grad, got 2"), ((x, 1), "got tuple")]:
        with pytest.raises(sn.ConfigError, match=message) as error:
            two(*arguments)
        error_line(error)
    with pytest.raises(sn.ConfigError, match="register_forward_hook: expected a function"):
        two.register_forward_hook("print")


def test_a_recorded_step_refuses_hooks_also_those_that_come_later():
    net, x, seen = model(), sn.Tensor(X), []
    step = sn.jit(lambda x: net(x))
    plain = [step(x).numpy().copy() for _ in range(3)][-1]
    handle = net[1].register_forward_hook(lambda *given: seen.append(1))
    with pytest.raises(sn.JitError, match="a hook of ReLU") as error:
        step(x)
    error_line(error)
    handle.remove()
    np.testing.assert_array_equal(step(x).numpy(), plain)
    assert not seen


def trainer(net, **options):
    data = sn.data.TensorDataset(X, np.arange(5) % 2)
    run = sn.Trainer(
        net, sn.optim.SGD(net.parameters(), lr=0.1), nn.CrossEntropyLoss(), shards=2, progress=False, **options
    )
    run.fit(sn.data.DataLoader(data, batch_size=5))
    return [p.detach().numpy().tobytes() for p in net.parameters()]


def test_trainer_calls_hooks_in_this_process_and_refuses_them_in_others():
    net, seen = model(), []
    expected = trainer(model())
    net[1].register_forward_hook(lambda m, args, y: seen.append(len(y)))
    with pytest.warns(UserWarning, match="a hook of ReLU"):
        assert trainer(net) == expected
    assert seen == [2, 3]  # a shard each
    hooks = {"a module": net[1].register_forward_hook, "a parameter": model()[0].weight.register_hook}
    for make in (lambda: hooks["a module"](print), lambda: net[0].weight.register_hook(print)):
        make()
        with pytest.raises(sn.ConfigError, match="Trainer: expected a model without hooks with workers") as error:
            trainer(net, workers=2)
        error_line(error)
