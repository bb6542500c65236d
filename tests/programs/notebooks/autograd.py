"""A notebook on gradients: what is recorded, what backward does, and how to stop it."""

import math

import torch

# One variable
x = torch.tensor(3.0, requires_grad=True)
y = x**2 + 2 * x + 1
y.backward()
assert x.grad.item() == 8 and x.is_leaf and not y.is_leaf and y.requires_grad

# Gradients add up until they are set to zero
(x**3).backward()
assert x.grad.item() == 8 + 27
x.grad.zero_()
torch.sin(x).backward()
assert abs(x.grad.item() - math.cos(3)) < 1e-6

# Vectors: a gradient for the result, or a sum
v = torch.ones(3, requires_grad=True)
w = v * torch.tensor([1.0, 2.0, 3.0])
w.backward(torch.tensor([1.0, 0.1, 0.01]))
assert torch.allclose(v.grad, torch.tensor([1.0, 0.2, 0.03]))
v.grad = None
w = (v * v).sum()
w.backward()
assert v.grad.tolist() == [2, 2, 2]

# The chain rule by hand, beside the machine
a = torch.linspace(-1, 1, 5, requires_grad=True)
s = torch.sigmoid(2 * a)
loss = (s * s).mean()
loss.backward()
by_hand = 2 * s * s * (1 - s) * 2 / 5
assert torch.allclose(a.grad, by_hand.detach(), atol=1e-6)

# Without a record
with torch.no_grad():
    assert not (a * 2).requires_grad
frozen = a.detach()
assert not frozen.requires_grad and (frozen.numpy() == a.detach().numpy()).all()


@torch.no_grad()
def measure(t):
    return t * 2


assert not measure(a).requires_grad
with torch.inference_mode():
    assert not (a + 1).requires_grad

# Twice through one record
z = torch.tensor(2.0, requires_grad=True)
y = z**3
y.backward(retain_graph=True)
y.backward()
assert z.grad.item() == 24
try:
    y.backward()
except RuntimeError as error:
    print("as it must:", str(error)[:60])
else:
    raise AssertionError("a record that was freed")

# A derivative of a derivative
p = torch.tensor([2.0, 3.0], requires_grad=True)
q = (p**3).sum()
q.backward(create_graph=True)
slope = p.grad.clone()
p.grad = None
slope.sum().backward()
assert p.grad.tolist() == [12, 18]

# Descent
torch.manual_seed(1)
point = torch.randn(2, requires_grad=True)
target = torch.tensor([1.0, -2.0])
for _ in range(100):
    distance = torch.norm(point - target) ** 2
    distance.backward()
    with torch.no_grad():
        point -= 0.1 * point.grad
    point.grad.zero_()
assert torch.allclose(point, target, atol=1e-4)
