"""Trains with a Database and a folder; kills itself after step N, or never: URL FOLDER N."""

import os
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from scratchnet.callbacks import Database  # noqa: E402
from tests.trainer.test_trainer import make  # noqa: E402

url, folder, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])


class Killer:
    def on_step_end(self, run):
        if run.step == last:
            os.kill(os.getpid(), signal.SIGKILL)


trainer, loader = make(folder, jit=False, save_every=5, callbacks=[Database(url, every=1), Killer()])
trainer.fit(loader, epochs=4, resume="auto")
