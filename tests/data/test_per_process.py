"""Images among several processes, seen from one of them; for two real ones see test_pods.py."""

import dataclasses  # noqa: I001
import gzip
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from tests.support import blobs, tiny_config

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, lazy, sources
from ganomaly_jax.data.formats import per_process
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.images import scan
from ganomaly_jax.parallel import processes, sharding
from ganomaly_jax.runs import resolution
from ganomaly_jax.training import input_pipeline
from ganomaly_jax.training.training_run import TrainingRun

SIZE = config.Data(height=16, width=16)
GREY, DEEP = scan.PixelFormat("uint8", True, False, 1), scan.PixelFormat("uint16", True, False, 1)
MIXED, FLOATING = scan.PixelFormat("float32", True, False, 1), scan.PixelFormat("float32", False, True, 1)


@pytest.fixture
def folder(tmp_path):
    for name, found in (("good", blobs(40, 0)), ("bad", blobs(8, 1, anomalous=True))):
        (tmp_path / name).mkdir()
        for i, image in enumerate(found):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{i:03}.png")
    (tmp_path / "good" / "007.png").write_bytes(b"\x89PNG")
    return tmp_path


@pytest.fixture
def settings(folder):
    return dataclasses.replace(SIZE, source=str(folder))


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded, as they are."""
    names, decode = [], image_files.decode_file

    def noted(path, *rest):
        names.append(f"{path.parent.name}/{path.name}")
        return decode(path, *rest)

    monkeypatch.setattr(image_files, "decode_file", noted)
    return names


def same(found, wanted):
    np.testing.assert_array_equal(found.images[:], wanted.images)
    assert datasets.content_hash(found) == datasets.content_hash(wanted) and found.digest
    assert (found.paths, found.classes, found.problems) == (wanted.paths, wanted.classes, wanted.problems)
    assert (found.low, found.high, found.normal) == (wanted.low, wanted.high, wanted.normal)
    np.testing.assert_array_equal(found.labels, wanted.labels)


@pytest.mark.parametrize("odd", [None, "colour", "deep"])
def test_read_on_demand_it_is_the_same_data(folder, settings, odd):
    """Also where a late file makes another kind of all of them."""
    if odd:
        late = np.asarray(Image.open(folder / "good" / "030.png"))
        late = np.repeat(late[..., None], 3, axis=2) if odd == "colour" else late.astype(np.uint16) * 257
        Image.fromarray(late).save(folder / "good" / "030.png")
    same(sources.load(settings, shared=True), sources.load(settings))


def test_only_what_is_asked_for_is_decoded(settings, decoded):
    found = sources.load(settings, shared=True)
    assert isinstance(found.images, lazy.LazyImages)
    assert len(decoded) == 48
    decoded.clear()
    assert found.images[[3, 20]].shape == (2, 16, 16, 1)
    assert sorted(decoded) == ["bad/003.png", "good/013.png"]  # without the damaged one


def test_a_process_looks_through_its_own_part(settings, decoded, monkeypatch):
    monkeypatch.setattr(processes, "local_range", lambda count: range(count // 2, count))
    found = sources.load(settings, shared=True)
    assert sorted(decoded) == [f"good/{i:03}.png" for i in range(16, 40)]
    assert len(found.images) == 24  # nobody told of the other half


def test_it_is_trained_on_from_memory_and_only_the_own_places_are_read(settings, decoded):
    whole = tiny_config(batch_size=8)
    whole.data = settings
    run = TrainingRun(resolution.resolve_checked(whole, shared=True), None)
    mesh = sharding.local_mesh(4)
    decoded.clear()
    with input_pipeline.opened(run, mesh, 0) as fed:
        assert not fed.note and len(set(decoded)) == run.image_count
        decoded.clear()
        fed.images(0, 3)
        assert not decoded
        held = np.asarray(fed.images(0, 3))
    kept = run.run.dataset.images[run.run.split.train[run.places.ravel()]]
    np.testing.assert_array_equal(held, kept)


def test_an_image_that_is_another_now_is_refused(folder, settings):
    found = sources.load(settings, shared=True)
    Image.fromarray(blobs(1, 99)[0, ..., 0]).save(folder / "good" / "003.png")
    (folder / "bad" / "002.png").unlink()
    with pytest.raises(UserError, match=r"003\.png differs from the image that one of the processes read at the start"):
        found.images[11]
    with pytest.raises(UserError, match=r"002\.png could be read at the start but no longer can: no such file"):
        found.images[2]


PIXELS = np.random.default_rng(0).integers(0, 256, (4000, 16, 16), np.uint8)
LABELS = (np.arange(4000) % 10 == 0).astype(np.uint8)


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def one_file(folder, kind):
    """The source of 1 MB of images in one file, or two with their labels."""
    if kind == "npy":
        np.save(folder / "a.npy", PIXELS)
        return folder / "a.npy"
    if kind == "npz":
        np.savez(folder / "a.npz", images=PIXELS, labels=LABELS)
        return folder / "a.npz"
    end, pack = (".gz", gzip.compress) if kind == "idx, packed" else ("", bytes)
    for word, array in (("images-idx3", PIXELS), ("labels-idx1", LABELS)):
        (folder / f"train-{word}-ubyte{end}").write_bytes(pack(idx(array)))
    return folder


@pytest.mark.parametrize("size", [16, 8])
@pytest.mark.parametrize("kind", ["npy", "npz", "idx", "idx, packed"])
def test_of_one_file_nothing_is_held(tmp_path, kind, size):
    """And it is the same data. What is mapped is not even held while it is looked through."""
    settings = config.Data(source=str(one_file(tmp_path, kind)), height=size, width=size)
    tracemalloc.start()
    try:
        found = sources.load(settings, shared=True)
        held, most = tracemalloc.get_traced_memory()
        tracemalloc.clear_traces()
        wanted = sources.load(settings)
        whole = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    beside = 1.1e6  # names, labels and hashes of 4,000 images
    assert held < beside and whole > wanted.images.nbytes + held - beside
    if size == 16 and kind in ("npy", "idx"):
        assert most < PIXELS.nbytes + beside
    same(found, wanted)


def test_what_lies_in_memory_is_put_into_a_file_or_says_why_not(tmp_path, monkeypatch):
    settings = config.Data(source=str(one_file(tmp_path, "npz")), height=16, width=16)
    monkeypatch.setattr(per_process.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"1,024,000 bytes of images cannot be written to .*nowhere .*TMPDIR"):
        sources.load(settings, shared=True)


def test_a_file_that_is_another_now_is_refused(tmp_path):
    path = one_file(tmp_path, "npy")
    found = sources.load(config.Data(source=str(path), height=16, width=16), shared=True)
    with path.open("r+b") as file:
        file.seek(128 + 7 * 256)
        file.write(b"other")
    np.testing.assert_array_equal(found.images[6], PIXELS[6, ..., None])
    with pytest.raises(
        UserError, match=r"a\.npy\[7\] differs from the image that one of the processes read at the start"
    ):
        found.images[7]


def test_a_damaged_file_is_refused(tmp_path):
    path = one_file(tmp_path, "npz")
    content = bytearray(path.read_bytes())
    content[content.index(PIXELS[7].tobytes()) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz cannot be read: Bad CRC-32"):
        sources.load(config.Data(source=str(path), height=16, width=16), shared=True)


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="none of the 1 image files"):
        sources.load(dataclasses.replace(SIZE, source=str(tmp_path)), shared=True)


@pytest.mark.parametrize(
    ("kinds", "together"),
    [
        ([], None),
        ([GREY, GREY], GREY),
        ([GREY, dataclasses.replace(GREY, channels=3)], dataclasses.replace(GREY, channels=3)),
        ([GREY, DEEP], MIXED),
        ([GREY, MIXED], MIXED),
        ([FLOATING, GREY], GREY),
        ([FLOATING], FLOATING),
    ],
)
def test_what_parts_become_together(kinds, together):
    assert scan.common_format(kinds) == together


def test_the_parts_of_the_processes_are_everything_once(monkeypatch):
    monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
    found = []
    for index in range(3):
        monkeypatch.setattr(processes.jax, "process_index", lambda index=index: index)
        found += processes.local_range(10)
    assert found == list(range(10))
