# A main program without a guard, whose model and loss workers get by value; for tests/parallel/pool/test_pool.py.
# It is also typed at a prompt, where an empty line ends a class and a string on its own is printed.

import numpy as np

import scratchnet as sn

print("main program runs", flush=True)


class Net(sn.nn.Module):
    def __call__(self, x):
        return self.layer(x).tanh()


def loss(output, target):
    return ((output - target) ** 2).mean()


def train(workers):
    sn.manual_seed(0)
    model = Net()
    model.layer = sn.nn.Linear(4, 2)
    rng = np.random.default_rng(0)
    data = sn.data.TensorDataset(*(rng.standard_normal((8, n)).astype(np.float32) for n in (4, 2)))
    optimizer = sn.optim.SGD(model.parameters(), 0.1)
    trainer = sn.Trainer(model, optimizer, loss, workers=workers, shards=2, progress=False)
    trainer.fit(sn.data.DataLoader(data, 8), epochs=3)
    return model.layer.weight.detach().numpy().tobytes().hex()


print(train(2) == train(1))
