"""Every source, what is taken as what in it, and a sentence for everything that cannot be a source."""

import gzip
import os
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.sources import describe, from_arrays, load
from ganomaly_jax.data.splits import split

Image = pytest.importorskip("PIL.Image")


def fill(root, counts, size=(40, 48), ending="png"):
    """Images of one grey level each, `counts` a folder."""
    level = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            level += 1
            Image.fromarray(np.full(size, level, np.uint8)).save(root / folder / f"{i:03}.{ending}")
    return root


def read(path, **settings):
    return load(config.Data(source=str(path), **settings))


def taken(dataset, **settings):
    """{class: (training and calibration images, test images, anomalous ones)}"""
    made = split(dataset, config.Data(**settings), 0)
    names = np.array(dataset.classes)[dataset.labels]
    trained = [*made.train, *made.calibration]
    return {
        name: (
            sum(names[i] == name for i in trained),
            sum(names[i] == name for i in made.test),
            sum(names[i] == name and label == 1 for i, label in zip(made.test, made.labels, strict=True)),
        )
        for name in dataset.classes
    }


def test_a_flat_folder_is_normal(tmp_path):
    data = read(fill(tmp_path / "mit Leerzeichen ü", {".": 20}))
    assert data.images.shape == (20, 64, 64, 1) and data.images.dtype == np.uint8
    assert (data.images[:, 0, 0, 0] == np.arange(1, 21)).all()
    assert (data.low, data.high, data.parts) == (0, 255, None)
    assert data.paths[3] == str(tmp_path / "mit Leerzeichen ü" / "003.png")
    assert taken(data) == {"normal": (16, 4, 0)}


@pytest.mark.parametrize(
    "names", [("good", "bad"), ("Normal", "Abnormal"), ("ok", "anomalous"), ("0", "1"), ("benign", "defect")]
)
def test_two_folders(tmp_path, names):
    data = read(fill(tmp_path, {names[0]: 10, names[1]: 5}))
    assert taken(data) == {names[0]: (8, 2, 0), names[1]: (0, 5, 5)} and data.classes == names


def test_mvtec(tmp_path):
    fill(
        tmp_path,
        {"train/good": 12, "test/good": 4, "test/broken tip": 3, "test/kratzer ü": 2, "ground_truth/broken": 3},
    )
    (tmp_path / "license.txt").write_text("x")
    data = read(tmp_path)
    assert data.classes == ("good", "broken tip", "kratzer ü") and data.normal == {"good"}
    assert taken(data) == {"good": (12, 4, 0), "broken tip": (0, 3, 3), "kratzer ü": (0, 2, 2)}


def test_the_originals_layout(tmp_path):
    data = read(fill(tmp_path, {"train/0.normal": 9, "test/0.normal": 3, "test/1.abnormal": 4}))
    assert taken(data) == {"0.normal": (9, 3, 0), "1.abnormal": (0, 4, 4)}


def test_train_and_test_without_classes_in_train(tmp_path):
    data = read(fill(tmp_path, {"Train": 6, "validation/good": 4, "test/ok": 2, "test/hole": 3}))
    assert taken(data) == {"good": (4, 0, 0), "normal": (6, 0, 0), "ok": (0, 2, 0), "hole": (0, 3, 3)}


def test_anomalies_in_train_are_moved(tmp_path):
    data = read(fill(tmp_path, {"train/good": 6, "train/bad": 2, "test/good": 2}))
    assert taken(data) == {"good": (6, 2, 0), "bad": (0, 2, 2)}
    assert "never trained on" in describe(data, split(data, config.Data(), 0))


def test_folders_as_classes(tmp_path):
    fill(tmp_path / "a", {"cat": 10, "dog": 10, "owl": 5})
    assert taken(read(tmp_path / "a", abnormal="owl"), abnormal="owl")["owl"] == (0, 5, 5)
    with pytest.raises(UserError) as refused:
        read(tmp_path / "a")
    for word in ("cat, dog, owl", "good", "bad", "--config.data.abnormal=NAME"):
        assert word in str(refused.value)
    with pytest.raises(UserError, match=r"'owls' is not a class .* the nearest is 'owl'"):
        read(tmp_path / "a", abnormal="owls")
    fill(tmp_path / "b", {"train/0": 5, "train/1": 5, "train/2": 5, "test/0": 2, "test/1": 2, "test/2": 2})
    data = read(tmp_path / "b", abnormal="0")
    assert taken(data, abnormal="0")["0"] == (0, 7, 7) and data.parts.sum() == 6
    assert sum(row[0] for row in taken(data, abnormal="0").values()) == 11  # int(0.8 * 14)
    with pytest.raises(UserError, match="holds the folders 0, 1, 2"):
        read(tmp_path / "b")


def test_abnormal_never_turns_known_defects_normal(tmp_path):
    fill(tmp_path, {"train/good": 6, "test/good": 2, "test/gun": 2, "test/razor": 2})
    with pytest.raises(UserError, match=r"razor would be counted as normal; leave data.abnormal empty"):
        read(tmp_path, abnormal="gun")


def test_folders_that_are_not_understood(tmp_path):
    with pytest.raises(UserError, match=r"both images \(000.png\) and folders of images \(good\)"):
        read(fill(tmp_path / "a", {".": 1, "good": 1}))
    with pytest.raises(UserError, match="holds spare beside test, train: not understood"):
        read(fill(tmp_path / "b", {"train/good": 1, "test/good": 1, "spare": 1}))
    with pytest.raises(UserError, match=r"000\.png is in no class"):
        read(fill(tmp_path / "c", {"train/good": 1, "test": 1}))
    with pytest.raises(UserError, match=r"several data sets; take one, such as .*bottle"):
        read(fill(tmp_path / "d", {"bottle/train/good": 1, "cable/train/good": 1}))
    with pytest.raises(UserError, match="no normal images, only bad"):
        read(fill(tmp_path / "e", {"bad": 3}))


def test_empty_folders(tmp_path):
    with pytest.raises(UserError, match=r"no images in .*: it is empty; expected .bmp"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / ".b.png").write_text("x")
    with pytest.raises(UserError, match="it holds 2 other files"):
        read(tmp_path)


def test_unreadable_files(tmp_path):
    fill(tmp_path / "some", {".": 10})
    (tmp_path / "some" / "a b.png").write_bytes(b"")
    data = read(tmp_path / "some")
    assert len(data.images) == 10 and data.problems == ((str(tmp_path / "some" / "a b.png"), "empty file (0 bytes)"),)
    assert "1 files could not be read" in describe(data)
    fill(tmp_path / "two", {"bad": 4, "good": 6})
    (tmp_path / "two" / "bad" / "001.png").write_bytes(b"")
    data = read(tmp_path / "two")
    assert [data.classes[i] for i in data.labels] == [Path(path).parent.name for path in data.paths] and len(
        data.paths
    ) == 9
    assert data.images[:, 0, 0, 0].tolist() == [1, 3, 4, 5, 6, 7, 8, 9, 10]
    (tmp_path / "all").mkdir()
    for i in range(5):
        (tmp_path / "all" / f"{i}.jpg").write_bytes(b"" if i else b"text")
    with pytest.raises(UserError) as refused:
        read(tmp_path / "all")
    message = str(refused.value)
    assert message.startswith("none of the 5 image files") and message.count("empty file") == 2
    assert "0.jpg: not an image" in message and "3.jpg" not in message


def test_names_that_are_no_unicode(tmp_path):
    fill(tmp_path, {".": 3})
    os.rename(tmp_path / "000.png", os.fsencode(tmp_path) + b"/\xff.png")
    assert all(path.encode("utf-8") for path in read(tmp_path).paths)


def test_sizes(tmp_path):
    fill(tmp_path / "small", {".": 3}, (20, 32))
    fill(tmp_path / "large", {".": 3}, (20, 33))
    assert read(tmp_path / "small").images.shape[1:3] == (32, 32)
    assert read(tmp_path / "large").images.shape[1:3] == (64, 64)
    assert read(tmp_path / "small", width=128).images.shape[1:3] == (32, 128)
    assert read(tmp_path / "small", height=16, width=16, channels=3).images.shape == (3, 16, 16, 3)
    assert load(config.Data(), np.zeros((3, 28, 28), np.uint8)).images.shape == (3, 32, 32, 1)
    assert load(config.Data(), np.zeros((3, 28, 40, 5), np.uint8)).images.shape == (3, 64, 64, 5)
    assert load(config.Data(width=16), np.zeros((3, 32, 32), np.uint8)).images.shape == (3, 32, 16, 1)


def test_ranges(tmp_path):
    fill(tmp_path / "mixed", {".": 2})
    Image.fromarray(np.full((40, 48), 65535, np.uint16)).save(tmp_path / "mixed" / "w.png")
    mixed = read(tmp_path / "mixed")
    assert mixed.images.dtype == np.float32 and (mixed.low, mixed.high) == (0, 1) and mixed.images.max() == 1
    for i in range(3):
        (tmp_path / "real").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 48), i * 9.5, np.float32)).save(tmp_path / "real" / f"{i}.tif")
    assert (read(tmp_path / "real").low, read(tmp_path / "real").high) == (None, None)
    assert (read(tmp_path / "real", low=-1.0, high=20.0).low, read(tmp_path / "real", low=-1.0, high=20.0).high) == (
        -1,
        20,
    )


def test_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 32, 32), np.uint8)
    labels = np.repeat([0, 1], [20, 10])
    path = tmp_path / "größe.npz"

    np.savez(path, images=images)
    assert taken(read(path)) == {"normal": (24, 6, 0)}
    np.savez(path, images=images, labels=labels)
    data = read(path)
    assert taken(data) == {"0": (16, 4, 0), "1": (0, 10, 10)} and data.paths[3] == "größe.npz[3]"
    np.testing.assert_array_equal(data.images[..., 0], images)
    assert taken(read(path, abnormal="0"), abnormal="0") == {"0": (0, 20, 20), "1": (8, 2, 0)}
    np.savez(path, images=images[..., None].repeat(3, -1), labels=np.where(labels, "anomalous", "normal"))
    assert read(path).images.shape == (30, 32, 32, 3)
    assert taken(read(path)) == {"anomalous": (0, 10, 10), "normal": (16, 4, 0)}
    np.savez(path, images=images, labels=np.where(labels, "anomalus", "normal"))
    with pytest.raises(UserError, match="anomalus, normal"):
        read(path)
    np.savez(path, images=images, labels=labels + 4)
    with pytest.raises(UserError, match="has the classes 4, 5, and which of them are anomalous is not said"):
        read(path)
    assert taken(read(path, abnormal="5"), abnormal="5") == {"4": (16, 4, 0), "5": (0, 10, 10)}
    np.savez(path, x_train=images[:20], y_train=labels[:20], x_test=images[15:], y_test=labels[15:])
    assert taken(read(path)) == {"0": (20, 5, 0), "1": (0, 10, 10)}
    np.savez(path, x_train=images[:20], x_test=images[15:], y_test=labels[15:])
    assert taken(read(path)) == {"0": (20, 5, 0), "1": (0, 10, 10)}
    np.save(tmp_path / "a.npy", images)
    assert taken(read(tmp_path / "a.npy")) == {"normal": (24, 6, 0)}


def test_npz_that_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    images = np.zeros((4, 32, 32), np.uint8)
    np.savez(path, pictures=images, other=images)
    with pytest.raises(UserError, match="holds pictures, other: expected images and labels"):
        read(path)
    np.savez(path, images=images, labels=np.array([0, "x", None, 1], object))
    with pytest.raises(UserError, match="values of type object: expected numbers or text"):
        read(path)
    np.savez(path, x_train=images, x_test=images)
    with pytest.raises(UserError, match="no labels for the 4 images of its train part"):
        read(path)
    np.savez(path, images=images, labels=[0, 0, 1, 1])
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:200] + b"\xff" * 9 + whole[209:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.npz"):
            read(path)


def write_idx(path, array):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = head + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_idx(tmp_path):
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (50, 32, 32), np.uint8), np.arange(50, dtype=np.uint8) % 5
    for packed in ("", ".gz"):
        folder = tmp_path / f"set{packed}"
        folder.mkdir()
        write_idx(folder / f"train-images-idx3-ubyte{packed}", pixels[:40])
        write_idx(folder / f"train-labels-idx1-ubyte{packed}", labels[:40])
        write_idx(folder / f"t10k-images-idx3-ubyte{packed}", pixels[40:])
        write_idx(folder / f"t10k-labels-idx1-ubyte{packed}", labels[40:])
        data = read(folder, abnormal="3")
        np.testing.assert_array_equal(data.images[..., 0], pixels)
        assert data.classes == ("0", "1", "2", "3", "4") and data.parts.tolist() == [0] * 40 + [1] * 10
        assert taken(data, abnormal="3")["3"] == (0, 10, 10)
        one = read(folder / f"t10k-images-idx3-ubyte{packed}", abnormal="3")
        np.testing.assert_array_equal(one.images[..., 0], pixels[40:])
        assert one.parts is None and one.labels.tolist() == labels[40:].tolist()
    with pytest.raises(UserError, match="which of them are anomalous"):
        read(tmp_path / "set")
    (tmp_path / "set" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="no labels for the 10 images of its t10k part"):
        read(tmp_path / "set", abnormal="3")
    cut = tmp_path / "set" / "train-images-idx3-ubyte"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"truncated or altered: its header claims 40 x 32 x 32"):
        read(tmp_path / "set", abnormal="3")
    packed = tmp_path / "set.gz" / "train-images-idx3-ubyte.gz"
    whole = packed.read_bytes()
    damaged = [
        whole[:-20],
        b"text",
        whole[:50] + b"\0\xff" + whole[52:],
        gzip.compress(b"text"),
        whole[:10] + b"\xff" * 99,
    ]
    for content in damaged:
        packed.write_bytes(content)
        with pytest.raises(UserError, match=r"set\.gz"):
            read(tmp_path / "set.gz", abnormal="3")
    cut.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**10, 2**10))
    with pytest.raises(UserError, match="truncated or altered"):
        read(cut)


def test_what_is_no_source(tmp_path):
    fill(tmp_path / "bottles", {".": 3})
    with pytest.raises(UserError, match=r"bottle does not exist; expected a folder.*; did you mean .*bottles\?"):
        read(tmp_path / "bottle")
    with pytest.raises(UserError, match=r"did you mean mnist5k\?"):
        read("mnist5")
    with pytest.raises(UserError, match=r"data\.source is empty"):
        read("")
    for name in ("a.pt", "a.pkl", "a.pth"):
        (tmp_path / name).write_bytes(pickle.dumps([1]))
        with pytest.raises(UserError, match=f"{name}: pickles are not read, since they can run code"):
            read(tmp_path / name)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.mp4: not a source; expected a folder"):
        read(tmp_path / "a.mp4")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="loop cannot be read"):
        read(tmp_path / "loop")
    with pytest.raises(UserError, match=r"null (byte|character)"):
        read("a\0b")


def test_arrays_from_python():
    images, labels = np.zeros((10, 32, 32), np.uint8), [0] * 8 + [1] * 2
    for arrays in ((images, labels), from_arrays(images, labels)):
        assert taken(load(config.Data(), arrays)) == {"0": (6, 2, 0), "1": (0, 2, 2)}
    assert taken(load(config.Data(), images)) == {"normal": (8, 2, 0)}
    jnp = pytest.importorskip("jax.numpy")
    assert load(config.Data(), jnp.zeros((10, 32, 32), jnp.uint8)).images.dtype == np.uint8


def test_nothing_warns_and_nothing_leaks_settings(tmp_path):
    filters = list(warnings.filters)
    read(fill(tmp_path, {".": 3}))
    assert warnings.filters == filters


@pytest.mark.parametrize("name", ["data.npz", "train-images-idx3-ubyte"])
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    source = tmp_path if "idx3" in name else tmp_path / name
    with pytest.raises(UserError, match="not a regular file"):
        load(config.Data(source=str(source)))
