"""The run of tests/trainer/test_trainer.py that is killed and stopped: it prints each step that is done, and waits for
a line, or for the end of its standard input, before it goes on.

`python trainer_child.py FOLDER`
"""

import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

import scratchnet as sn  # noqa: E402
from tests.trainer.test_trainer import make  # noqa: E402


class AnnouncingLoader(sn.data.DataLoader):
    """When the next batch is asked for, the step of the one before is done."""

    def batch_indices(self, epoch, start=0):
        for number, positions in enumerate(super().batch_indices(epoch, start), epoch * len(self) + start):
            yield positions
            print("step", number + 1, flush=True)
            sys.stdin.readline()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it
    trainer, loader = make(sys.argv[1], save_every=2)
    loader.__class__ = AnnouncingLoader
    trainer.fit(loader, epochs=4, resume="auto")
