"""A notebook with a convolutional network, on bars that stand, lie or lean."""

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(3)


def bars(n):
    """Pictures (n, 1, 12, 12) of one bar each, and which of three kinds it is."""
    kinds = torch.randint(0, 3, (n,))
    pictures = 0.2 * torch.rand(n, 1, 12, 12)
    for i in range(n):
        at = int(torch.randint(2, 10, (1,)).item())
        if kinds[i] == 0:
            pictures[i, 0, :, at] = 1.0
        elif kinds[i] == 1:
            pictures[i, 0, at, :] = 1.0
        else:
            for j in range(12):
                pictures[i, 0, j, (j + at) % 12] = 1.0
    return pictures, kinds


images, labels = bars(240)
loader = DataLoader(TensorDataset(images, labels), batch_size=40, shuffle=True)


class ConvNet(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
        )
        self.classifier = nn.Linear(16 * 3 * 3, classes)

    def forward(self, x):
        x = self.features(x)
        x = x.view(x.size(0), -1)
        return self.classifier(x)


net = ConvNet()
first = next(iter(loader))[0]
assert tuple(first.shape) == (40, 1, 12, 12) and tuple(net.features(first).shape) == (40, 16, 3, 3)
assert tuple(net(first).size()) == (40, 3)

criterion = nn.CrossEntropyLoss()
optimizer = optim.Adam(net.parameters(), lr=0.01)
history = []
for epoch in range(6):
    net.train()
    running = 0.0
    for pictures, kinds in loader:
        optimizer.zero_grad()
        loss = criterion(net(pictures), kinds)
        loss.backward()
        optimizer.step()
        running += loss.item()
    history.append(running / len(loader))
    print(f"[{epoch + 1}] loss: {history[-1]:.3f}")

net.eval()
with torch.no_grad():
    unseen, truth = bars(60)
    _, predicted = torch.max(net(unseen), 1)
    accuracy = (predicted == truth).float().mean().item()
print(f"accuracy on unseen pictures: {100 * accuracy:.1f} %")
assert history[-1] < history[0] / 2 and accuracy > 0.8
