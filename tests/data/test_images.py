"""Images: pixels come out as they were written; folders are classes; what is no image, or of another size, is named."""

import numpy as np
import pytest
from messages import refused
from PIL import Image

from scratchnet.data import DataLoader, ImageInputs, image_folder, read_image
from scratchnet.errors import ConfigError, DataError, DataNotFoundError, DtypeError, ShapeError

COLORS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
GRAY = COLORS[..., 0]


@pytest.fixture
def folder(tmp_path):
    """Two classes, of two images and one."""
    root = tmp_path / "pictures"
    for name, images in {"dog": [COLORS], "cat": [COLORS[::-1], COLORS[:, ::-1]]}.items():
        (root / name).mkdir(parents=True)
        for i, pixels in enumerate(images):
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    return root


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_pixels_come_out_as_they_were_written(tmp_path, suffix):
    Image.fromarray(COLORS).save(tmp_path / f"color.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"color.{suffix}"), COLORS.transpose(2, 0, 1))
    if suffix != "ppm":
        Image.fromarray(GRAY).save(tmp_path / f"gray.{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"gray.{suffix}", channels=1), GRAY[None])
        np.testing.assert_array_equal(read_image(tmp_path / f"gray.{suffix}"), np.stack([GRAY] * 3))


def test_transparency_is_left_out_and_a_turned_photo_is_turned_back(tmp_path):
    Image.fromarray(np.dstack([COLORS, GRAY])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), COLORS.transpose(2, 0, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(COLORS).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(COLORS, -1).transpose(2, 0, 1))


def test_a_constant_image_stays_constant_when_it_is_resized(tmp_path):
    Image.fromarray(np.full((9, 4), 77, np.uint8)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", 1, (3, 8)), np.full((1, 3, 8), 77))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_of_folders_is_a_data_set(folder, in_memory):
    dataset = image_folder(folder, in_memory=in_memory)
    assert dataset.classes == ("cat", "dog") and len(dataset) == 3
    ((x, y),) = DataLoader(dataset, 3)
    pixels = np.stack([COLORS[::-1], COLORS[:, ::-1], COLORS]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(x.numpy(), pixels.astype(np.float32) * np.float32(1 / 255))
    assert y.numpy().tolist() == [0, 0, 1]
    resized = image_folder(folder, size=(4, 6), channels=1, in_memory=in_memory)
    assert resized[:][0].shape == (3, 1, 4, 6) and resized.inputs.size == (4, 6)
    means = image_folder(folder, transform=lambda image: image.mean(axis=(1, 2)), in_memory=in_memory)
    np.testing.assert_allclose(means[:][0], x.numpy().mean(axis=(2, 3)), rtol=1e-6)


def save(path, pixels):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


SPOILED = {
    "other size": (lambda root: save(root / "dog/9.png", COLORS[:3]), "9.png: expected 7x5 pixels .*, found 3x5"),
    "no image": (lambda root: (root / "dog/9.png").write_text("no"), "9.png: expected an image"),
    "cut": (
        lambda root: (root / "dog/9.png").write_bytes((root / "dog/0.png").read_bytes()[:60]),
        "9.png: expected an image",
    ),
    "other file": (lambda root: (root / "dog/notes.txt").write_text("no"), "notes.txt: expected images"),
    "empty class": (lambda root: (root / "cow").mkdir(), "expected images of the class 'cow'"),
    "in no class": (lambda root: save(root / "9.png", COLORS), "9.png: expected a folder for each class"),
    "16 bits": (lambda root: save(root / "dog/9.png", GRAY.astype(np.uint16)), "9.png: expected at most 8 bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_what_does_not_belong_there_is_named(folder, case):
    spoil, message = SPOILED[case]
    spoil(folder)
    with pytest.raises(DataError, match=message):
        image_folder(folder)[:]
    refused(DataError, lambda: image_folder(folder, in_memory=False)[:])


def test_no_folder_no_file_no_pillow(tmp_path, monkeypatch):
    with pytest.raises(DataNotFoundError):
        image_folder(tmp_path / "none")
    with pytest.raises(DataError, match="a folder of images for each class"):
        image_folder(tmp_path)
    with pytest.raises(DataNotFoundError):
        read_image(tmp_path / "none.png")
    assert "found a folder" in refused(DataError, lambda: read_image(tmp_path))
    assert "(height, width)" in refused(ConfigError, lambda: read_image("x.png", size=(1, 2, 3)))
    assert "3 for color" in refused(ConfigError, lambda: read_image("x.png", channels=2))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert refused(ConfigError, lambda: read_image("x.png")).endswith("expected Pillow, found none; pip install pillow")


def test_inputs_take_paths_and_pixels_of_one_image_or_several(folder):
    inputs = image_folder(folder).inputs
    path = folder / "dog" / "0.png"
    expected = COLORS.transpose(2, 0, 1)[None].astype(np.float32) * np.float32(1 / 255)
    for images in (path, [path], COLORS.transpose(2, 0, 1), COLORS.transpose(2, 0, 1)[None]):
        np.testing.assert_array_equal(inputs(images), expected)
    features, names = inputs.read(path)
    np.testing.assert_array_equal(features, expected)
    assert names == [str(path)]
    flat = ImageInputs((7, 5), 1, flat=True)
    for images in (GRAY, GRAY[None], GRAY[None, None]):
        assert flat(images).shape == (1, 35)
    assert flat(np.stack([GRAY, GRAY])).shape == (2, 35)
    assert flat(np.stack([GRAY, GRAY])[:0]).shape == (0, 35)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (COLORS, ShapeError, r"expected images of (3, 7, 5), or n of them, got (1, 7, 5, 3)"),
        (np.ones((3, 7, 5)), ConfigError, "pixels of uint8"),
        (np.ones((3, 7, 5), np.uint16), ConfigError, "pixels of uint8"),
        (5, ConfigError, "pixels of uint8"),
        (min, DtypeError, "expected numbers"),
    ],
)
def test_what_are_no_images_is_refused(images, error, message):
    assert message in refused(error, lambda: ImageInputs((7, 5), 3)(images))


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.mpo"])
def test_frames_behind_the_first_are_not_left_out_in_silence_but_for_the_preview_of_a_camera(tmp_path, name):
    frames = [Image.fromarray(np.full((2, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    if name == "x.mpo":
        assert read_image(tmp_path / name, 1).mean() == 10
    else:
        with pytest.raises(DataError, match="expected one image, found 2 frames or pages; save the one that counts"):
            read_image(tmp_path / name, 1)
