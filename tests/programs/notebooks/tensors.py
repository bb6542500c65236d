"""A first notebook: what a tensor is, how it is made, cut, joined and computed with."""

import numpy as np
import torch

# Making tensors
x = torch.tensor([[1, 2, 3], [4, 5, 6]])
print(x, x.dtype, x.shape, x.size(), x.dim(), x.numel())
assert x.dtype == torch.int64 and tuple(x.size()) == (2, 3) and x.size(1) == 3
zeros, ones = torch.zeros(2, 3), torch.ones((2, 3), dtype=torch.float64)
assert zeros.dtype == torch.float32 and ones.sum().item() == 6
counts = torch.arange(12)
steps = torch.linspace(0, 1, steps=5)
assert steps.tolist() == [0, 0.25, 0.5, 0.75, 1]
identity, sevens = torch.eye(3), torch.full((2, 2), 7.0)
torch.manual_seed(0)
noise, uniform = torch.randn(3, 4), torch.rand(3, 4)
dice = torch.randint(1, 7, (100,))
assert dice.min() >= 1 and dice.max() <= 6
assert torch.zeros_like(noise).shape == noise.shape and torch.is_tensor(noise)
order = torch.randperm(5)
assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
noise = noise.to(device).cpu()

# To NumPy and back, in the same memory
array = np.ones(3)
shared = torch.from_numpy(array)
array += 1
assert shared[0].item() == 2 and isinstance(shared.numpy(), np.ndarray)

# Shapes
matrix = counts.view(3, 4)
assert tuple(matrix.reshape(-1).shape) == (12,) and tuple(matrix.t().shape) == (4, 3)
assert tuple(matrix.unsqueeze(0).shape) == (1, 3, 4) and tuple(matrix.unsqueeze(0).squeeze().shape) == (3, 4)
assert tuple(matrix.permute(1, 0).contiguous().view(2, 6).shape) == (2, 6)
assert tuple(torch.flatten(torch.zeros(2, 3, 4), start_dim=1).shape) == (2, 12)
assert tuple(torch.ones(3, 1).expand(3, 4).shape) == (3, 4) and tuple(torch.ones(2).repeat(3, 2).shape) == (3, 4)

# Indexing
assert matrix[1, 2].item() == 6 and matrix[:, 1].tolist() == [1, 5, 9] and matrix[-1].tolist() == [8, 9, 10, 11]
assert matrix[matrix > 8].tolist() == [9, 10, 11] and matrix[[0, 2], [1, 3]].tolist() == [1, 11]
assert torch.where(matrix > 5, matrix, torch.zeros_like(matrix)).sum().item() == 51
assert torch.gather(matrix, 1, torch.tensor([[0], [1], [2]])).flatten().tolist() == [0, 5, 10]

# Joining and cutting
assert tuple(torch.cat([matrix, matrix], dim=0).shape) == (6, 4)
assert tuple(torch.stack([matrix, matrix]).shape) == (2, 3, 4)
left, right = torch.chunk(matrix, 2, dim=1)
assert left.tolist() == [[0, 1], [4, 5], [8, 9]] and [len(part) for part in matrix.split(2)] == [2, 1]

# Arithmetic, in place and not; broadcasting
a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
assert torch.equal(a + b, torch.add(a, b)) and (a * b).sum() == torch.dot(a, b)
a.add_(1).mul_(2)
assert a.tolist() == [4, 6, 8]
column, row = torch.arange(3).view(3, 1), torch.arange(4).view(1, 4)
assert tuple((column * row).shape) == (3, 4)
assert torch.allclose(torch.matmul(noise, noise.T), noise @ noise.t()) and noise.mm(noise.T).shape == (3, 3)
assert tuple(torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5)).shape) == (2, 3, 5)
assert torch.allclose(torch.einsum("ij,kj->ik", noise, noise), noise @ noise.T, atol=1e-6)

# Reductions
data = torch.tensor([[1.0, 4.0, 2.0], [3.0, 3.0, 9.0]])
assert data.sum(dim=0).tolist() == [4, 7, 11] and abs(data.mean().item() - 22 / 6) < 1e-6
values, places = torch.max(data, dim=1)
assert values.tolist() == [4, 9] and places.tolist() == [1, 2] and data.argmax().item() == 5
assert abs(data[0].std().item() - np.std([1, 4, 2], ddof=1)) < 1e-6
assert torch.sort(data, descending=True)[0].tolist() == [[4, 2, 1], [9, 3, 3]]
assert data.topk(1).indices.tolist() == [[1], [2]]
assert torch.cumsum(data, dim=1)[:, -1].tolist() == [7, 15] and abs(data.norm().item() ** 2 - 120) < 1e-4
normalised = (data - data.mean(dim=1, keepdim=True)) / data.std(dim=1, keepdim=True)
assert abs(normalised.mean().item()) < 1e-6
assert data.clamp(min=2, max=4).max().item() == 4 and data.float().long().dtype == torch.int64
assert torch.any(data > 8) and not torch.all(data > 8) and not torch.isnan(data).any()
assert torch.tril(torch.ones(3, 3)).sum().item() == 6 and torch.round(torch.tensor(2.5)).item() == 2
