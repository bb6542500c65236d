"""Networks of sequences in worker processes: the bits do not depend on their number."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet import nn

WORDS = np.random.default_rng(0).integers(0, 20, (48, 7))


class Classifier(nn.Module):
    """Words -> vectors -> a layer over the steps -> mean -> classes; word 0 is padding."""

    def __init__(self, kind):
        self.words, self.kind = nn.Embedding(20, 8), kind
        if kind == "GRU":
            self.layer = nn.GRU(8, 4, batch_first=True, bidirectional=True)
        else:
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, words):
        x = self.words(words)
        if self.kind == "GRU":
            return self.head(self.layer(x, lengths=(words > 0).sum(1))[0].mean(1))
        return self.head(self.layer(x, src_key_padding_mask=words == 0).mean(1))


@pytest.mark.parametrize("kind", ["GRU", "transformer"])
def test_a_trainer_gives_the_same_bits_for_any_number_of_workers(kind):
    data = sn.data.TensorDataset(WORDS, WORDS[:, 1] % 2)

    def weights(workers):
        sn.manual_seed(0)
        model = Classifier(kind)
        optimizer = sn.optim.Adam(model.parameters(), lr=0.01)
        trainer = sn.Trainer(model, optimizer, nn.CrossEntropyLoss(), workers=workers, shards=4, progress=False)
        trainer.fit(sn.data.DataLoader(data, batch_size=24), epochs=1)
        return [p.detach().numpy().tobytes() for p in model.parameters()]

    assert weights(1) == weights(2)
