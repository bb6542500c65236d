"""What all training scripts have in common: the flags that say how, where and how watched a job runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checks, nn
from .callbacks import BestCheckpoint, Database, EarlyStopping, LearningRateFinder, TensorBoard
from .data import DataLoader, Dataset, random_split
from .errors import ConfigError
from .flags import flag, stored
from .formats.checkpoint_folder import new_folder
from .kernels import set_num_threads
from .optim import AdamW
from .optim.lr_scheduler import OneCycleLR
from .parallel.comm.job import is_first_rank
from .parallel.compression import COMPRESSIONS
from .parallel.phases import SCHEDULES
from .parallel.strategies import STRATEGIES, Strategy, strategy_of
from .precisions import PRECISIONS
from .random import manual_seed
from .tensor import default_device
from .trainer import History, Trainer
from .trainer.run import phase_start


@dataclass
class JobFlags:
    """Base of a script's configuration. The script adds its data, its model and its optimizer."""

    epochs: int = flag(20, "passes over the training data")
    seed: int = flag(0, "seed of initial weights, order of samples and dropout")
    workers: int | str = flag(1, "processes that compute, or auto to measure and pick; see shards", stored=False)
    memory: float | None = flag(None, "bytes of arrays that a worker may hold, with workers auto", stored=False)
    shards: int | None = flag(None, "parts of a batch, which alone change bits; 1 for one worker, else 8, unless given")
    strategy: str = flag("all_reduce", "how gradients become new parameters", list(STRATEGIES))
    staleness: int | None = flag(None, "updates that gradients are behind: parameter_server; 0 unless given")
    every: int | None = flag(None, "batches between averages: local_sgd; 8 unless given")
    parts: int | None = flag(None, "parts of a layer, which change bits: tensor_parallel (2 unless given), pipeline")
    stages: int | None = flag(None, "groups of layers, each for a worker: pipeline; 2 unless given", stored=False)
    schedule: str | None = flag(None, "order of a pipeline's work; 1f1b unless given", list(SCHEDULES), stored=False)
    cut: tuple[str, ...] = flag((), "modules before which stages begin; equal measured time unless given", stored=False)
    compression: str = flag("none", "what is left out of gradients: all_reduce", list(COMPRESSIONS))
    accumulate: int = flag(1, "batches an optimizer step")
    clip_norm: float | None = flag(None, "largest norm of the merged gradient")
    precision: str = flag("float32", "type in which matrix products read their operands", list(PRECISIONS))
    threads: int | None = flag(None, "CPU threads of the kernels; all cores unless given", stored=False)
    device: str = flag("cpu", "table of kernels; with workers and cuda, a GPU for each", ["cpu", "numpy", "cuda"])
    devices: tuple[str, ...] = flag((), "where each worker computes instead, such as cuda:0 cuda:1 or cuda:0 cpu")
    folder: str | None = flag(None, "where checkpoints, log and curves.png go; else runs/DATE-TIME", stored=False)
    resume: str | None = flag(None, "'auto' to go on from the folder's newest checkpoint, or a file", stored=False)
    new_phase: bool = flag(False, "go on with other settings, such as epochs or lr; see resume", stored=False)
    save_every: int | None = flag(None, "steps between checkpoints; one an epoch unless given")
    early_stopping: int | None = flag(None, "epochs without a better validation loss that end the run", stored=False)
    best: bool = flag(False, "keep the state of the best epoch in best.safetensors", stored=False)
    tensorboard: bool = flag(False, "write the folder's tensorboard, for tensorboard --logdir", stored=False)
    database: str | None = flag(None, "where the run is kept, such as sqlite:///runs.db", stored=False)
    find_lr: bool = flag(False, "first try rising learning rates on a copy, and say which is best", stored=False)
    timeline: str | None = flag(None, "file for what each worker did when, for https://ui.perfetto.dev", stored=False)

    def begin(self) -> None:
        """Sets the seed, the device and the threads."""
        manual_seed(self.seed)
        default_device(self.device)
        if self.threads is not None:
            set_num_threads(self.threads)

    def run_folder(self) -> Path:
        """The folder of the run, which is made where none is given."""
        return Path(self.folder) if self.folder else new_folder("runs", is_first_rank())

    def steps(self, folder: Path, batches: int) -> int:
        """Optimizer steps that a schedule has, of epochs with so many batches; at least one."""
        epochs = self.epochs - phase_start(folder, self.resume, self.new_phase)
        return max(epochs, 1) * -(-batches // max(self.accumulate, 1))  # a Trainer refuses less

    def options(self) -> dict[str, Any]:
        """Of a Trainer: `sn.Trainer(model, optimizer, loss, schedule, folder=folder, **config.options())`."""
        named = {
            name: getattr(self, name) for name in ("workers", "memory", "shards", "seed", "accumulate", "clip_norm")
        }
        return named | {
            "strategy": self._strategy(),
            "devices": self.devices or None,
            "save_every": self.save_every,
            "timeline": self.timeline,
            "config": stored(self),
            "precision": self.precision,
            "callbacks": self.callbacks(),
        }

    def _strategy(self) -> Strategy:
        names = ("staleness", "every", "parts", "stages", "schedule")
        options = {name: getattr(self, name) for name in names} | {"cut": self.cut or None}
        return strategy_of(self.strategy, **options, compression=COMPRESSIONS[self.compression])

    def callbacks(self) -> list[Any]:
        """What watches the run."""
        chosen = [
            self.early_stopping is not None and EarlyStopping(patience=self.early_stopping),
            self.best and BestCheckpoint(),
            self.tensorboard and TensorBoard(),
            self.database is not None and Database(self.database),
            self.find_lr and LearningRateFinder(),
        ]
        return [callback for callback in chosen if callback]


@dataclass
class AdamFlags(JobFlags):
    """Base of jobs that train with AdamW along a one-cycle schedule: what is left to a script is its data and model."""

    batch_size: int = flag(128, "samples an optimizer step")
    lr: float = flag(0.002, "highest learning rate of the one-cycle schedule")
    weight_decay: float = flag(0.01, "share of the weights, times the learning rate, that a step takes away")
    validation: float = flag(0.1, "fraction of the training data kept for validation")
    test: float = flag(0.2, "fraction of the data held back to test on, where no file says which")

    def held_back(self, data: Dataset, name: str) -> list[Dataset]:
        """The data set, and a random part of it that is held back: the fraction that the flag `name` says.

        Raises ConfigError where nothing is left to train on or, after the training, to test on.
        """
        fraction = checks.number(f"--{name}", getattr(self, name), "[0, 1)")
        kept, held = random_split(data, [1 - fraction, fraction], seed=self.seed)
        if not len(kept) or (name == "test" and not len(held)):
            what, got = f"rows to train on and to {name.removesuffix('ion')}", f"{fraction} of {len(data)} rows"
            raise ConfigError(f"--{name}: expected a fraction that leaves {what}, got {got}")
        return [kept, held]

    def fit(
        self, model: nn.Module, loss: nn.Module, train: Dataset, val: Dataset, folder: Path
    ) -> tuple[Trainer, History]:
        """Splits samples into batches, computes gradients of their shards, merges them into steps: many times."""
        loader = DataLoader(train, self.batch_size, shuffle=True, seed=self.seed)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = AdamW(trained, self.lr, weight_decay=self.weight_decay)
        schedule = OneCycleLR(optimizer, self.lr, self.steps(folder, len(loader)))
        trainer = Trainer(model, optimizer, loss, schedule, folder=folder, **self.options())
        validation = DataLoader(val, 1024) if len(val) else None
        return trainer, trainer.fit(loader, validation, self.epochs, self.resume, self.new_phase)
