"""TensorBoard: a run as event files, which `tensorboard --logdir FOLDER` shows while it trains."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import checks
from ..data.dataset import gather
from ..errors import ConfigError
from ..nn import Module
from ..parallel.shards import shard_loss, tensors_of
from ..random import Generator
from ..sealed import Sealed
from ..tensor import Tensor
from ..trainer.moments import Progress

SAMPLES = 256  # of the first batch, for the histograms of gradients


class TensorBoard(Sealed):
    """Writes losses, metrics, learning rates, histograms of weights and gradients, the layers, the configuration.

    folder: of the event files; None: `tensorboard` in the folder of the run. every: steps between two writes, in which
    all of their losses are written. histograms: of every parameter and its gradient, after each epoch; the gradient is
    of the first samples of the training data, computed on a copy. images: called as images(run) after each epoch, gives
    {name: array (n, h, w) or (n, c, h, w) in [0, 1]}.
    A resumed run goes on in the same files; what was written after its checkpoint is hidden. Files are written by a
    thread of tensorboardX (`pip install tensorboardX`); ConfigError without it.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        every: int = 50,
        histograms: bool = True,
        images: Callable[[Progress], dict[str, Any]] | None = None,
    ):
        self.folder = None if folder is None else Path(checks.path("TensorBoard: folder", folder))
        self.every = checks.integer("TensorBoard: every", every, 1)
        self.histograms = checks.flag("TensorBoard: histograms", histograms)
        self.images = None if images is None else checks.function("TensorBoard: images", images)
        self._writer: Any = None

    def on_fit_start(self, run: Progress) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ConfigError("expected tensorboardX, found none; pip install tensorboardX") from None
        if self.folder is None and run.folder is None:
            raise ConfigError("expected a folder, or a Trainer with one, got neither")
        folder = self.folder or run.folder / "tensorboard"  # type: ignore[operator]
        resumes = {"purge_step": run.step + 1, "filename_suffix": f".{run.step}"} if run.step else {}
        self._writer = SummaryWriter(str(folder), **resumes)
        if not run.step:
            self._writer.add_text("configuration", _indented(json.dumps(run.config, indent=2, default=str)), 0)
            self._writer.add_text("model", _indented(repr(run.model)), 0)
            _add_graph(self._writer, run.model)

    def on_step_end(self, run: Progress) -> None:
        for i, loss in enumerate(run.losses, run.step - len(run.losses) + 1):
            self._add("loss/step", loss, i)
        for k, group in enumerate(run.optimizer.param_groups):
            self._add(f"lr/group {k}" if k else "lr", group["lr"], run.step + 1)  # of the next step

    def on_epoch_end(self, run: Progress) -> None:
        for name, value in run.record.items():
            if name not in ("epoch", "step") and value is not None:
                self._add(name.replace("_", "/", 1), value, run.step)
        if self.histograms:
            for name, parameter in run.model.named_parameters():
                self._add_histogram(f"weights/{name}", parameter.detach().numpy(), run.step)
            for name, gradient in _gradients(run).items():
                self._add_histogram(f"gradients/{name}", gradient, run.step)
        for name, images in (self.images(run) if self.images else {}).items():
            array = np.asarray(images, np.float32)
            if array.ndim not in (3, 4):
                checks.refuse(f"images {name!r}", "an array (n, h, w) or (n, c, h, w)", array)
            self._writer.add_images(name, array if array.ndim == 4 else array[:, None], run.step)
        self._writer.flush()

    def on_fit_end(self, run: Progress) -> None:
        self.on_step_end(run)  # the steps since the last one
        self._writer.close()

    def on_exception(self, run: Progress, error: BaseException) -> None:
        if self._writer is not None:
            self.on_fit_end(run)

    def _add(self, name: str, value: float, step: int) -> None:
        if not math.isnan(value):
            self._writer.add_scalar(name, value, step)

    def _add_histogram(self, name: str, array: np.ndarray, step: int) -> None:
        if array.size and np.isfinite(array).all():
            self._writer.add_histogram(name, array, step)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_writer": None}  # of a copy

    def __repr__(self) -> str:
        return f"TensorBoard({None if self.folder is None else str(self.folder)!r}, every={self.every})"


def _gradients(run: Progress) -> dict[str, np.ndarray]:
    """The gradient of the first samples of the training data, by parameter, computed on a copy of the model."""
    model = copy.deepcopy(run.model)
    model.zero_grad()
    device = next(iter(model.parameters())).device
    batch = gather(run.loader.source, next(iter(run.loader.batch_indices(0)))[:SAMPLES])
    tensors = tensors_of(batch, lambda array: Tensor(array, device=device))
    shard_loss(model, run.trainer.loss, tensors, Generator(0), run.trainer.precision).backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def _indented(text: str) -> str:
    """As a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _add_graph(writer: Any, model: Module) -> None:
    """The tree of layers, in the order of their names: each takes what the one before it gives."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.graph_pb2 import GraphDef
    from tensorboardX.proto.node_def_pb2 import NodeDef
    from tensorboardX.proto.versions_pb2 import VersionDef

    nodes, before = [NodeDef(name="input", op="Input")], "input"
    for name, module in model.named_modules():
        if name and not any(True for _ in module.children()):
            shapes = ", ".join(f"{key} {tuple(p.shape)}" for key, p in module.named_parameters())
            path = name.replace(".", "/")
            node = NodeDef(name=path, op=type(module).__name__, input=[before])
            if shapes:
                node.attr["parameters"].s = shapes.encode()
            nodes.append(node)
            before = path
    graph = GraphDef(node=nodes, versions=VersionDef(producer=22))
    writer.file_writer.add_event(Event(graph_def=graph.SerializeToString()))
