"""A folder among several processes, seen from one of them; for two real ones see test_pods.py."""

import dataclasses

import numpy as np
import pytest
from conftest import blobs, tiny_config
from PIL import Image

from ganomaly_jax import config, data, feed, hosts, images, lazy, loop, run, sharding, sources, survey
from ganomaly_jax.errors import UserError

SIZE = config.Data(height=16, width=16)
GREY, DEEP = survey.Kind("uint8", True, False, 1), survey.Kind("uint16", True, False, 1)
MIXED, FLOATING = survey.Kind("float32", True, False, 1), survey.Kind("float32", False, True, 1)


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
    names, decode = [], images.decoded

    def noted(path, *rest):
        names.append(f"{path.parent.name}/{path.name}")
        return decode(path, *rest)

    monkeypatch.setattr(images, "decoded", noted)
    return names


def same(found, wanted):
    np.testing.assert_array_equal(found.images[:], wanted.images)
    assert data.content_hash(found) == data.content_hash(wanted) and found.digest
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
    monkeypatch.setattr(hosts, "own_part", lambda count: range(count // 2, count))
    found = sources.load(settings, shared=True)
    assert sorted(decoded) == [f"good/{i:03}.png" for i in range(16, 40)]
    assert len(found.images) == 24  # nobody told of the other half


def test_it_is_trained_on_from_memory_and_only_the_own_places_are_read(settings, decoded):
    whole = tiny_config(batch_size=8)
    whole.data = settings
    course = loop.Course(run.resolve(whole, shared=True), None)
    mesh = sharding.local_mesh(4)
    decoded.clear()
    with feed.opened(course, mesh, 0) as fed:
        assert not fed.note and len(set(decoded)) == course.images
        decoded.clear()
        fed.images(0, 3)
        assert not decoded
        held = np.asarray(fed.images(0, 3))
    kept = course.run.dataset.images[course.run.split.train[course.places.ravel()]]
    np.testing.assert_array_equal(held, kept)


def test_an_image_that_is_another_now_is_refused(folder, settings):
    found = sources.load(settings, shared=True)
    Image.fromarray(blobs(1, 99)[0, ..., 0]).save(folder / "good" / "003.png")
    (folder / "bad" / "002.png").unlink()
    with pytest.raises(UserError, match=r"003\.png is another image than at the start"):
        found.images[11]
    with pytest.raises(UserError, match=r"002\.png could be read at the start and cannot be now: no such file"):
        found.images[2]


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
    assert survey.common(kinds) == together


def test_the_parts_of_the_processes_are_everything_once(monkeypatch):
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 3)
    found = []
    for index in range(3):
        monkeypatch.setattr(hosts.jax, "process_index", lambda index=index: index)
        found += hosts.own_part(10)
    assert found == list(range(10))
