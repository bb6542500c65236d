"""A notebook without modules: linear regression, logistic regression and a network, each with a loop by hand."""

import torch

torch.manual_seed(0)

# Linear regression
true_w, true_b = torch.tensor([2.0, -3.4]), 4.2
X = torch.normal(0, 1, (200, 2))
y = torch.matmul(X, true_w) + true_b + torch.normal(0, 0.01, (200,))


def batches(size, features, labels):
    order = torch.randperm(len(features))
    for i in range(0, len(features), size):
        rows = order[i : min(i + size, len(features))]
        yield features[rows], labels[rows]


w = torch.zeros(2, requires_grad=True)
b = torch.zeros(1, requires_grad=True)
for _ in range(5):
    for batch_X, batch_y in batches(10, X, y):
        loss = ((batch_X @ w + b - batch_y) ** 2 / 2).mean()
        loss.backward()
        with torch.no_grad():
            for parameter in (w, b):
                parameter -= 0.1 * parameter.grad
                parameter.grad.zero_()
assert torch.allclose(w, true_w, atol=0.05) and abs(b.item() - true_b) < 0.05

# Logistic regression
labels = (X[:, 0] + X[:, 1] > 0).float()
w = torch.zeros(2, 1, requires_grad=True)
b = torch.zeros(1, requires_grad=True)
for _ in range(50):
    probability = torch.sigmoid(X.mm(w) + b).squeeze(1)
    loss = -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()
    loss.backward()
    w.data -= 0.5 * w.grad.data
    b.data -= 0.5 * b.grad.data
    w.grad.data.zero_()
    b.grad.data.zero_()
accuracy = ((probability > 0.5).float() == labels).float().mean().item()
assert accuracy > 0.9

# A network for two moons, softmax and cross-entropy by hand
n = 100
angle = torch.rand(n) * 3.14159
upper = torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
lower = torch.stack([1 - torch.cos(angle), 0.5 - torch.sin(angle)], dim=1)
inputs = torch.cat([upper, lower]) + torch.randn(2 * n, 2) * 0.1
classes = torch.cat([torch.zeros(n), torch.ones(n)]).long()
W1 = (torch.randn(2, 16) * 0.5).requires_grad_()
b1 = torch.zeros(16, requires_grad=True)
W2 = (torch.randn(16, 2) * 0.5).requires_grad_()
b2 = torch.zeros(2, requires_grad=True)
parameters = [W1, b1, W2, b2]


def relu(t):
    return torch.max(t, torch.zeros_like(t))


def log_softmax(logits):
    shifted = logits - logits.max(dim=1, keepdim=True).values
    return shifted - shifted.exp().sum(dim=1, keepdim=True).log()


losses = []
for _ in range(300):
    logits = relu(inputs @ W1 + b1) @ W2 + b2
    loss = -log_softmax(logits)[torch.arange(2 * n), classes].mean()
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.5 * parameter.grad
    losses.append(loss.item())
predicted = torch.argmax(logits, dim=1)
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, accuracy {(predicted == classes).float().mean():.3f}")
assert losses[-1] < 0.2 * losses[0] and (predicted == classes).sum().item() > 0.97 * 2 * n
