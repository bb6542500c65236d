"""A run that a callback stops, and one whose callback raises: FOLDER. Prints a line from each rank of each."""

import hashlib
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from scratchnet.callbacks import BestCheckpoint, EarlyStopping  # noqa: E402
from scratchnet.errors import CallbackError  # noqa: E402
from scratchnet.parallel import world  # noqa: E402
from tests.trainer.test_moments import Diary, raises_at  # noqa: E402
from tests.trainer.test_trainer import make  # noqa: E402


class Scripted:
    def on_epoch_end(self, run):
        run.record["metric"] = [3, 2, 2, 2, 2, 2][run.epoch - 1]


def say(*words):
    sys.stdout.write(" | ".join(map(str, [world().rank, *words])) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    folder, diary = Path(sys.argv[1]), Diary()
    callbacks = [Scripted(), EarlyStopping("metric", 2), BestCheckpoint("metric"), diary]
    trainer, loader = make(folder / "stopped", shards=4, callbacks=callbacks)
    history = trainer.fit(loader, epochs=6)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())).hexdigest()
    say("stopped", history.stopped, len(diary.moments), digest)
    trainer, loader = make(folder / "raised", shards=4, callbacks=[raises_at("on_step_end")])
    try:
        trainer.fit(loader, epochs=2)
    except CallbackError as error:
        say("raised", error)
