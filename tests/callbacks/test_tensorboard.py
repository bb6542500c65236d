"""What TensorBoard writes, as TensorBoard's own reader reads it."""

import numpy as np
import pytest

from scratchnet.callbacks import TensorBoard
from scratchnet.errors import CallbackError
from tests.trainer.test_moments import STEPS, Diary
from tests.trainer.test_trainer import make, weights

pytest.importorskip("tensorboardX")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder):
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    return events.Reload()


def scalars(events, name):
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.mark.parametrize("workers", [1, 2])
def test_all_losses_metrics_and_histograms_are_read_back(tmp_path, workers):
    diary = Diary()
    trainer, loader = make(
        tmp_path, shards=2, workers=workers, config={"hidden": 8}, callbacks=[TensorBoard(every=2), diary]
    )
    history = trainer.fit(loader, loader, epochs=2)
    events = read(tmp_path / "tensorboard")
    losses = scalars(events, "loss/step")
    assert list(losses) == list(range(1, 2 * STEPS + 1))
    np.testing.assert_allclose(list(losses.values()), diary.losses, rtol=1e-6)
    for name in ("train_loss", "val_loss", "val_accuracy"):
        found = scalars(events, name.replace("_", "/", 1))
        assert list(found) == history["step"]
        np.testing.assert_allclose(list(found.values()), history[name], rtol=1e-6)
    rates = scalars(events, "lr")
    assert all(rate == pytest.approx(trainer.scheduler.values(0, step - 1)["lr"]) for step, rate in rates.items())
    names = [name for name, _ in trainer.model.named_parameters()]
    wanted = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in names}
    assert set(events.Tags()["histograms"]) == wanted
    for name, parameter in trainer.model.named_parameters():
        last = events.Histograms(f"weights/{name}")[-1].histogram_value
        assert (last.num, last.min) == (parameter.size, pytest.approx(float(parameter.detach().numpy().min())))
    assert b"hidden" in events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0]
    assert [node.op for node in events.Graph().node][:2] == ["Input", "Linear"]


def test_it_changes_no_bit(tmp_path):
    plain, loader = make(shards=2)
    plain.fit(loader, epochs=2)
    trainer, loader = make(tmp_path, shards=2, callbacks=[TensorBoard()])
    trainer.fit(loader, epochs=2)
    assert weights(trainer) == weights(plain)


def test_a_resumed_run_goes_on_in_the_same_curves(tmp_path):
    for epochs, resume in ((1, None), (3, "auto")):
        trainer, loader = make(tmp_path, callbacks=[TensorBoard(every=1)])
        trainer.fit(loader, epochs=epochs, resume=resume)
    assert list(scalars(read(tmp_path / "tensorboard"), "loss/step")) == list(range(1, 3 * STEPS + 1))


def test_images_come_from_a_function_of_the_run(tmp_path):
    def images(run):
        return {"noise": np.full((2, 5, 4), run.epoch / 10, np.float32), "colour": np.zeros((1, 3, 5, 4))}

    trainer, loader = make(callbacks=[TensorBoard(tmp_path, images=images)])
    trainer.fit(loader, epochs=2)
    tags = read(tmp_path).Tags()["images"]
    assert {tag.split("/")[0] for tag in tags} == {"noise", "colour"}
    trainer, loader = make(callbacks=[TensorBoard(tmp_path / "b", images=lambda run: {"bad": np.zeros(3)})])
    with pytest.raises(CallbackError, match=r"images 'bad': expected an array \(n, h, w\) or \(n, c, h, w\), got"):
        trainer.fit(loader, epochs=1)


def test_it_needs_a_folder():
    trainer, loader = make(callbacks=[TensorBoard()])
    with pytest.raises(CallbackError, match="expected a folder, or a Trainer with one, got neither"):
        trainer.fit(loader, epochs=1)
