"""load: the embedded set, MNIST folders of every spelling, the search for the full set, and its download."""

import contextlib
import gzip
import hashlib
import http.server
import os
import re
import runpy
import struct
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from scratchnet.data import FASHION_MNIST_CLASSES, load, read_idx, sources, write_idx
from scratchnet.errors import ConfigError, DataError, DataNotFoundError

REPOSITORY = Path(__file__).parents[2]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian_files = pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")


def mnist_arrays(n_train=12, n_test=5, shape=(4, 3)):
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (n_train, *shape), np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, n_train, np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (n_test, *shape), np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, n_test, np.uint8),
    }


def write_folder(folder, arrays=None, spelling="{name}.gz"):
    arrays = arrays or mnist_arrays()
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        write_idx(folder / spelling.format(name=name, dotted=name.replace("-idx", ".idx")), array)
    return arrays


def assert_holds(part, images, labels):
    x, y = part[:]
    assert x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_allclose(x, images.reshape(len(images), -1) / 255, rtol=1e-6)
    np.testing.assert_array_equal(y, labels)


# --- the embedded set -----------------------------------------------------------------------------------------------


def test_the_embedded_set_is_balanced_and_in_range():
    assert len(FASHION_MNIST_CLASSES) == 10
    for part, n in zip(load("fashion-mnist-mini"), (6000, 1000), strict=True):
        x, y = part[:]
        assert x.shape == (n, 784) and x.dtype == np.float32 and x.min() == 0.0 and x.max() == 1.0
        assert y.dtype == np.int64 and np.bincount(y).tolist() == [n // 10] * 10
        assert part.arrays[0].dtype == np.uint8


def test_the_embedded_set_is_small_and_carries_its_licence():
    files = sorted(sources.EMBEDDED_FOLDER.iterdir())
    assert [file.name for file in files] == ["LICENSE", *sorted(f"{name}.gz" for name in sources.MNIST_FILES)]
    assert sum(file.stat().st_size for file in files) < 4_000_000
    licence = files[0].read_text()
    assert "MIT License" in licence and "2017 Zalando SE, https://tech.zalando.com" in licence


@needs_debian_files
def test_the_script_rebuilds_the_embedded_set_from_the_full_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_fashion_mini.py", str(DEBIAN), "--out", str(tmp_path)])
    runpy.run_path(str(REPOSITORY / "scripts" / "make_fashion_mini.py"), run_name="__main__")
    for name in sources.MNIST_FILES:
        rebuilt, embedded = tmp_path / f"{name}.gz", sources.EMBEDDED_FOLDER / f"{name}.gz"
        np.testing.assert_array_equal(read_idx(rebuilt), read_idx(embedded))
        if "ng" not in zlib.ZLIB_RUNTIME_VERSION:  # zlib-ng packs the same content into other bytes
            assert rebuilt.read_bytes() == embedded.read_bytes()


@needs_debian_files
@pytest.mark.parametrize(
    "name, time, md5",
    [
        ("train-images-idx3-ubyte", 1504176606, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte", 1504176606, "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte", 1504176627, "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte", 1504176627, "bb300cfdad3c16e7a12a480ee83cd310"),
    ],
)
def test_the_checksums_are_those_of_the_published_files(name, time, md5):
    debian = (DEBIAN / f"{name}.gz").read_bytes()
    # Debian took the file name and the time out of the gzip header. Put back, the bytes are those of the MD5 that
    # the authors published: so the content that we hash is the published one.
    published = b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + debian[8:10] + name.encode() + b"\0" + debian[10:]
    assert hashlib.md5(published).hexdigest() == md5
    assert hashlib.sha256(gzip.decompress(debian)).hexdigest() == sources.FASHION_MNIST_SHA256[name]


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["{name}", "{name}.gz", "{dotted}", "{dotted}.gz"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_read_in_every_spelling(tmp_path, spelling, kind):
    arrays = write_folder(tmp_path / "my data", spelling=spelling)
    train, test = load(kind(tmp_path / "my data"))
    assert_holds(train, arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"])
    assert_holds(test, arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"])


def test_a_path_is_a_folder_even_if_it_spells_a_known_name(tmp_path, monkeypatch):
    write_folder(tmp_path / "fashion-mnist-mini")
    monkeypatch.chdir(tmp_path)
    assert len(load(Path("fashion-mnist-mini"))[0]) == 12
    assert len(load("fashion-mnist-mini")[0]) == 6000


def test_labels_of_any_integer_type_are_taken(tmp_path):
    arrays = mnist_arrays()
    write_folder(tmp_path, {**arrays, "train-labels-idx1-ubyte": np.arange(12, dtype=np.int32)})
    np.testing.assert_array_equal(load(tmp_path)[0].arrays[1], np.arange(12))


def swap_train(arrays):
    arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"] = (
        arrays["train-labels-idx1-ubyte"],
        arrays["train-images-idx3-ubyte"],
    )


FOLDER_FAULTS = {
    "images and labels swapped": (swap_train, r"train-images.*: expected images, .* found uint8 \(12,\)"),
    "labels of the other half": (
        lambda a: a.update({"train-labels-idx1-ubyte": a["t10k-labels-idx1-ubyte"]}),
        "train-labels.*: expected 12 labels, one an image, found 5",
    ),
    "images of floats": (
        lambda a: a.update({"t10k-images-idx3-ubyte": np.zeros((5, 4, 3), np.float32)}),
        r"t10k-images.*: expected images, uint8 \(n, height, width\), found float32 \(5, 4, 3\)",
    ),
    "no images": (
        lambda a: a.update({"train-images-idx3-ubyte": np.zeros((0, 4, 3), np.uint8)}),
        r"found uint8 \(0, 4, 3\)",
    ),
    "images of no pixels": (
        lambda a: a.update({"train-images-idx3-ubyte": np.zeros((12, 0, 3), np.uint8)}),
        r"found uint8 \(12, 0, 3\)",
    ),
    "labels of floats": (
        lambda a: a.update({"train-labels-idx1-ubyte": np.zeros(12, np.float32)}),
        r"expected labels, integers \(n,\), found float32 \(12,\)",
    ),
    "a negative label": (
        lambda a: a.update({"train-labels-idx1-ubyte": np.full(12, -1, np.int8)}),
        "expected labels from 0 to 255, found -1 to -1",
    ),
    "a label of 256": (
        lambda a: a.update({"train-labels-idx1-ubyte": np.full(12, 256, np.int16)}),
        "expected labels from 0 to 255, found 256 to 256",
    ),
    "test images of another size": (
        lambda a: a.update({"t10k-images-idx3-ubyte": np.zeros((5, 9, 9), np.uint8)}),
        "expected images of 12 pixels as for training, found 81",
    ),
    "a missing file": (
        lambda a: a.pop("t10k-labels-idx1-ubyte"),
        "expected t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz, found t10k-images-idx3-ubyte.gz, train-images",
    ),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_folder_that_does_not_fit_together_is_refused(tmp_path, fault):
    damage, message = FOLDER_FAULTS[fault]
    arrays = mnist_arrays()
    damage(arrays)
    write_folder(tmp_path, arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"expected train-images-idx3-ubyte or .*, found an empty folder"):
        load(tmp_path)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(DataNotFoundError, match="fasion-mnist: expected fashion-mnist-mini, fashion-mnist or a folder"):
        load("fasion-mnist")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataNotFoundError, match=r"expected .* or a folder with MNIST files .Not a directory"):
        load(tmp_path / "file")


@pytest.mark.parametrize("name", [None, 3, ["fashion-mnist"]])
def test_a_name_of_another_type_is_refused(name):
    with pytest.raises(ConfigError, match="load: expected a name or a folder, got"):
        load(name)


# --- the full set: where it is looked for ---------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with an empty cache, nothing from Debian, and no net; machine / "cache" is the cache folder."""
    for variable in ("SCRATCHNET_DATA", "SCRATCHNET_CACHE_DIR", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SCRATCHNET_DATA_URL", "http://127.0.0.1:9")  # the discard port: refused
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sources, "DEBIAN_FOLDER", tmp_path / "debian")
    (tmp_path / "cache").symlink_to(tmp_path / "xdg/scratchnet/fashion-mnist")
    return tmp_path


def test_the_search_goes_from_the_variable_to_the_cache_to_debian(machine, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_DATA", str(machine / "data"))
    places = [
        "debian",
        "xdg/scratchnet/fashion-mnist",
        "data",
        "data/fashion-mnist",
    ]  # the later, the earlier it is asked
    for n, place in enumerate(places, start=1):
        write_folder(machine / place, mnist_arrays(n_train=n))
        assert len(load("fashion-mnist")[0]) == n


def test_without_xdg_the_cache_is_in_the_home_folder(machine, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(machine / "home"))
    write_folder(machine / "home/.cache/scratchnet/fashion-mnist")
    assert len(load("fashion-mnist")[0]) == 12


def test_an_incomplete_place_is_passed_over(machine):
    write_folder(machine / "debian")
    arrays = mnist_arrays()
    arrays.pop("t10k-labels-idx1-ubyte")
    write_folder(machine / "xdg/scratchnet/fashion-mnist", arrays)
    assert len(load("fashion-mnist")[0]) == 12


def test_a_damaged_place_is_not_passed_over_in_silence(machine):
    write_folder(machine / "debian")
    write_folder(machine / "xdg/scratchnet/fashion-mnist")
    (machine / "cache/train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: expected a header"):
        load("fashion-mnist")


# --- the full set: download -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve(answer):
    """A server on 127.0.0.1 that calls `answer(handler, file_name)`; yields its URL and the list of files asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.rsplit("/", 1)[-1])
            with contextlib.suppress(ConnectionError):
                answer(self, asked[-1])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/some/folder/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler, body, claimed=None, status=200):
    handler.send_response(status)
    if claimed != "none":
        handler.send_header("Content-Length", str(len(body) if claimed is None else claimed))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def upstream(machine, monkeypatch):
    """What upstream publishes: {file name: bytes}, with the checksums to match."""
    arrays = write_folder(machine / "upstream")
    plain = {name: zlib.decompress((machine / f"upstream/{name}.gz").read_bytes(), wbits=31) for name in arrays}
    monkeypatch.setattr(
        sources, "FASHION_MNIST_SHA256", {name: hashlib.sha256(content).hexdigest() for name, content in plain.items()}
    )
    return {f"{name}.gz": (machine / f"upstream/{name}.gz").read_bytes() for name in arrays}


@pytest.mark.parametrize("claimed", [None, "none"], ids=["with a length", "without a length"])
def test_a_download_fills_the_cache_once_and_shows_its_progress(machine, upstream, monkeypatch, claimed):
    seen = []
    with serve(lambda handler, name: send(handler, upstream[name], claimed)) as (url, asked):
        monkeypatch.setenv("SCRATCHNET_DATA_URL", url)
        train, test = load("fashion-mnist", progress=lambda *state: seen.append(state))
    assert len(train) == 12 and len(test) == 5
    assert asked == list(upstream)
    for name, content in upstream.items():
        assert (machine / "cache" / name).read_bytes() == content
        assert [state for state in seen if state[0] == name][-1] == (
            name,
            len(content),
            None if claimed else len(content),
        )
    assert len(list((machine / "cache").iterdir())) == 4
    assert len(load("fashion-mnist")[0]) == 12  # the server is gone: this is the cache


def test_a_download_goes_on_where_an_earlier_one_stopped(machine, upstream, monkeypatch):
    def answer(handler, name):
        send(handler, b"", status=503) if name.startswith("t10k") and len(asked) < 4 else send(handler, upstream[name])

    with serve(answer) as (url, asked):
        monkeypatch.setenv("SCRATCHNET_DATA_URL", url)
        with pytest.raises(DataNotFoundError, match="503"):
            load("fashion-mnist")
        assert len(load("fashion-mnist")[0]) == 12
    assert [name.split("-idx")[0] for name in asked] == [
        "train-images",
        "train-labels",
        "t10k-images",  # 503
        "t10k-images",
        "t10k-labels",
    ]


NEVER = threading.Event()


def trickle(handler, body):
    send(handler, b"", claimed=10**6)
    while True:
        handler.wfile.write(b"\x1f")
        NEVER.wait(0.01)


def hold(handler, body):
    handler.rfile.read()  # until the other side gives up


OTHER = gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"abc")

DOWNLOAD_FAULTS = {
    "404": (lambda handler, body: send(handler, b"gone", status=404), "HTTP Error 404"),
    "half a body": (lambda handler, body: send(handler, body[:-20], len(body)), r"expected \d+ bytes, found \d+"),
    "half a body without a length": (lambda handler, body: send(handler, body[:-20], "none"), "expected"),
    "an empty body": (lambda handler, body: send(handler, b""), "at least 4 bytes, found 0"),
    "a web page": (lambda handler, body: send(handler, b"<html>log in first</html>"), "not an IDX file"),
    "other content": (lambda handler, body: send(handler, OTHER), "expected content with SHA-256 [0-9a-f]{64}, found"),
    "too long": (lambda handler, body: send(handler, bytes(100_000)), "expected at most 50000 bytes"),
    "a bomb": (
        lambda handler, body: send(handler, gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 10**8) + bytes(10**6))),
        "at most 50000 bytes of data",
    ),
    "no answer": (hold, "timed out"),
    "a trickle": (trickle, "bytes in 0 s"),
    "a status of nonsense": (lambda handler, body: handler.wfile.write(b"SSH-2.0-hello\r\n"), "SSH-2.0"),
}


LIMITS = {hold: "STALL_SECONDS", trickle: "DOWNLOAD_SECONDS"}


@pytest.mark.parametrize("fault", DOWNLOAD_FAULTS)
def test_a_failed_download_says_how_to_get_the_data_and_leaves_nothing(machine, upstream, monkeypatch, fault):
    monkeypatch.setattr(sources, "MAX_DOWNLOAD", 50_000)
    damage, message = DOWNLOAD_FAULTS[fault]
    if (limit := LIMITS.get(damage)) is not None:  # the others answer, however busy the machine is
        monkeypatch.setattr(sources, limit, 0.2)
    with serve(lambda handler, name: damage(handler, upstream[name])) as (url, _):
        monkeypatch.setenv("SCRATCHNET_DATA_URL", url)
        with pytest.raises(DataError, match=message) as caught:
            load("fashion-mnist")
    assert_says_how(caught.value)
    assert not list((machine / "cache").iterdir())


def assert_says_how(error):
    assert re.search(r"apt-get install dataset-fashion-mnist.*SCRATCHNET_DATA", str(error)) and "\n" not in str(error)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[::1", "nonsense", "ftp://127.0.0.1:9", "http://a b/"])
def test_a_server_that_is_not_there_is_a_data_not_found_error(machine, monkeypatch, url):
    monkeypatch.setenv("SCRATCHNET_DATA_URL", url)
    with pytest.raises(DataNotFoundError, match=r"download of .* failed") as caught:
        load("fashion-mnist")
    assert_says_how(caught.value)


def test_a_cache_that_cannot_be_made_is_a_data_not_found_error(machine):
    (machine / "xdg").write_bytes(b"")
    with pytest.raises(DataNotFoundError, match=r"no cache folder .*: (Not a directory|File exists)") as caught:
        load("fashion-mnist")
    assert_says_how(caught.value)


def test_an_interrupted_download_leaves_nothing(machine, upstream, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with serve(lambda handler, name: send(handler, upstream[name])) as (url, _):
        monkeypatch.setenv("SCRATCHNET_DATA_URL", url)
        with pytest.raises(KeyboardInterrupt):
            load("fashion-mnist", progress=interrupt)
    assert os.listdir(machine / "cache") == []


# --- folders of torchvision, EMNIST, CIFAR-10 -------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["MNIST/raw", "FashionMNIST/raw", "raw"])
def test_a_folder_of_torchvision_is_found(tmp_path, below):
    arrays = write_folder(tmp_path / below, spelling="{name}")
    train, test = load(tmp_path)
    assert_holds(train, arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"])
    assert_holds(test, arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"])
    is_fashion = below.startswith("Fashion")
    assert train.classes == (FASHION_MNIST_CLASSES if is_fashion else tuple("0123456789"[: len(train.classes)]))


def test_images_may_keep_their_shape_and_know_how_they_were_made(tmp_path):
    arrays = write_folder(tmp_path)
    train, test = load(tmp_path, flat=False)
    images = arrays["train-images-idx3-ubyte"]
    np.testing.assert_array_equal(train[:][0], images[:, None].astype(np.float32) * np.float32(1 / 255))
    for dataset in (train, load(tmp_path)[0]):
        np.testing.assert_array_equal(dataset.inputs(images), dataset[:][0])
    assert test.inputs.size == (4, 3) and not test.inputs.resizes


def test_emnist_is_found_by_its_split_and_turned_upright(tmp_path):
    arrays = mnist_arrays()
    for split in ("letters", "digits"):
        for name, array in arrays.items():
            write_idx(tmp_path / f"emnist-{split}-{name.replace('t10k', 'test')}.gz", array)
        if split == "letters":
            train, test = load(tmp_path)
            upright = arrays["train-images-idx3-ubyte"].swapaxes(1, 2)
            assert_holds(train, upright, arrays["train-labels-idx1-ubyte"])
            assert train.inputs.size == (3, 4) and len(test) == 5
    with pytest.raises(ConfigError, match=r"expected split=... with one of digits, letters, got none"):
        load(tmp_path)
    assert len(load(tmp_path, split="digits")[0]) == 12
    with pytest.raises(DataNotFoundError, match="expected emnist-mnist-train-images"):
        load(tmp_path, split="mnist")


def write_cifar(folder, n=4):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    rows = {name: rng.integers(0, 256, (n, 3073), np.uint8) for name in names}
    for name, array in rows.items():
        array[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(array.tobytes())
    return rows


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar_10_is_read_from_its_binary_version(tmp_path, below):
    rows = write_cifar(tmp_path / below)
    train, test = load(tmp_path, flat=False)
    assert train.classes[0] == "airplane" and len(train) == 20 and len(test) == 4
    x, y = test[:]
    np.testing.assert_array_equal(y, rows["test_batch"][:, 0])
    for row, image in zip(rows["test_batch"], x, strict=True):
        assert image[2, 31, 0] == np.float32(row[1 + 2 * 1024 + 31 * 32]) * np.float32(1 / 255)
    assert load(tmp_path)[0][:][0].shape == (20, 3072)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "data_batch_2.bin").unlink(), "data_batch_2.bin: no such file"),
        (
            lambda folder: (folder / "data_batch_2.bin").write_bytes(bytes(3072)),
            "of 3073 bytes each, found 3072",
        ),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b"\x0a" * 3073), "labels from 0 to 9, found 10"),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b""), "found 0 bytes"),
    ],
)
def test_cifar_files_that_are_no_good_are_named(tmp_path, spoil, message):
    write_cifar(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_pickled_cifar_is_not_opened(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"binary version .*, found pickled files"):
        load(tmp_path)
