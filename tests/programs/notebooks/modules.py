"""A notebook with modules: data set, loader, model as a class, optimizer, loops for training and evaluation."""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(42)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Three clouds of points in eight dimensions
centres = torch.randn(3, 8) * 3
labels = torch.randint(0, 3, (600,))
features = centres[labels] + torch.randn(600, 8)
train_set, test_set = random_split(TensorDataset(features, labels), [500, 100])
train_loader = DataLoader(train_set, batch_size=50, shuffle=True)
test_loader = DataLoader(test_set, batch_size=100)


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.fc1 = nn.Linear(8, hidden)
        self.dropout = nn.Dropout(0.1)
        self.fc2 = nn.Linear(hidden, 3)

    def forward(self, x):
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


model = Net(32).to(device)
print(model)
assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 8 * 32 + 32 + 32 * 3 + 3
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)


def train(epoch):
    model.train()
    running_loss = 0.0
    for inputs, targets in train_loader:
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        loss.backward()
        optimizer.step()
        running_loss += loss.item() * inputs.size(0)
    scheduler.step()
    print(f"epoch {epoch}: loss {running_loss / len(train_set):.4f}")
    return running_loss / len(train_set)


def evaluate():
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for inputs, targets in test_loader:
            outputs = model(inputs.to(device))
            _, predicted = torch.max(outputs.data, 1)
            total += targets.size(0)
            correct += (predicted == targets.to(device)).sum().item()
    return correct / total


losses = [train(epoch) for epoch in range(5)]
assert losses[-1] < losses[0] and evaluate() > 0.9

# What was learned, kept and loaded
state = copy.deepcopy(model.state_dict())
twin = Net(32)
twin.load_state_dict(state)
twin.eval()
model.eval()
with torch.no_grad():
    assert torch.equal(twin(features[:5]), model(features[:5]))
    probabilities = F.softmax(model(features[:5]), dim=1)
assert torch.allclose(probabilities.sum(dim=1), torch.ones(5))

# The same as a sequence
sequence = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
sgd = torch.optim.SGD(sequence.parameters(), lr=0.1, momentum=0.9)
for inputs, targets in train_loader:
    loss = F.cross_entropy(sequence(inputs), targets)
    sgd.zero_grad()
    loss.backward()
    sgd.step()
assert (sequence(features).argmax(dim=1) == labels).float().mean() > 0.9
