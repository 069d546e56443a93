"""Many files: listing, one type for all, blocks, and threads that read ahead."""

import contextlib  # noqa: I001
import threading
import time
import warnings

import numpy as np
import pytest
from tests.data.test_image_files import COLOUR, RAMP, save

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images.files import decode_blocks, decode_files, list_images, read_ahead, scan_folder


def test_listing(tmp_path):
    for name in ("b.png", "a b.PNG", "ü/c.tiff", "ü/deep/d.jpg", ".hidden.png", "._x.jpg", "notes.txt", ".git/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "o.bmp").write_bytes(b"x")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "ü" / "self").symlink_to(tmp_path)
    (tmp_path / "up").symlink_to(tmp_path.parent)
    (outside / "back").symlink_to(tmp_path)
    found, others = scan_folder(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["a b.PNG", "b.png", "linked/o.bmp", "ü/c.tiff", "ü/deep/d.jpg"]
    assert others == 3 and list_images(tmp_path) == found
    with pytest.raises(UserError, match=r"no such file: .*nowhere"):
        scan_folder(tmp_path / "nowhere")


def test_types_are_unified(tmp_path):
    grey8 = save(tmp_path / "8.png", np.full((4, 4), 51, np.uint8))
    grey16 = save(tmp_path / "16.png", np.full((4, 4), 13107, np.uint16))
    colour = save(tmp_path / "c.png", np.full((4, 4, 3), 255, np.uint8))
    real = save(tmp_path / "f.tif", np.full((4, 4), 0.7, np.float32))

    def read(*paths, like=None):
        array, kept, problems, _ = decode_files(paths, 4, 4, 0, "stretch", like=like)
        return array, kept.tolist(), problems

    array, kept, _ = read(grey8, colour)
    assert array.dtype == np.uint8 and array.shape == (2, 4, 4, 3) and array[:, 0, 0, 0].tolist() == [51, 255]
    array, _, _ = read(grey16)
    assert array.dtype == np.uint16 and array.shape == (1, 4, 4, 1) and (array == 13107).all()
    array, _, _ = read(grey8, grey16)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, 0.2, atol=1e-6)
    array, _, _ = read(real)
    assert array.dtype == np.float32 and (array == np.float32(0.7)).all()
    array, kept, problems = read(grey8, real)
    assert array.dtype == np.uint8 and kept == [0] and "no common scale" in problems[0][1]
    # As a detector was trained: the same grey is the same number, whatever the file's type.
    array, kept, _ = read(grey8, grey16, like=("uint8", 0, 255))
    assert array.dtype == np.uint8 and (array == 51).all() and kept == [0, 1]
    array, _, _ = read(grey8, grey16, like=("uint16", 0, 65535))
    assert array.dtype == np.uint16 and (array == 13107).all()
    array, _, _ = read(grey8, like=("float32", 0.0, 1.0))
    np.testing.assert_allclose(array, 0.2, atol=1e-6)
    assert read(grey8, like=("float32", 3.0, 99.0))[1] == []
    assert read(real, like=("uint8", 0, 255))[1] == []
    assert read(real, like=("float32", 3.0, 99.0))[1] == [0]


def test_channels_asked_for(tmp_path):
    paths = [save(tmp_path / "c.png", COLOUR), save(tmp_path / "g.png", RAMP)]
    assert decode_files(paths, 6, 8, 1, "stretch")[0].shape == (2, 6, 8, 1)
    assert decode_files(paths[1:], 6, 8, 0, "stretch")[0].shape == (1, 6, 8, 1)
    _, kept, problems, _ = decode_files(paths, 6, 8, 4, "stretch")
    assert kept.tolist() == [1] and "3 channels, expected 4" in problems[0][1]
    nothing = decode_files([], 6, 8, 0, "stretch")
    assert nothing[0].shape == (0, 6, 8, 1) and nothing[1].shape == (0,) and nothing[2] == []


def test_blocks_are_the_files_in_turn(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    good = [save(tmp_path / f"{i}.png", np.roll(COLOUR, i, 0)) for i in range(6)]
    paths = [*good[:3], bad, *good[3:]]
    like = ("uint8", 0, 255)
    blocks = list(decode_blocks(paths, 3, 6, 8, 3, "stretch", like, workers=2))
    assert [len(kept) + len(problems) for _, kept, problems, _ in blocks] == [3, 3, 1]
    for i, (array, kept, problems, span) in enumerate(blocks):
        want = decode_files(paths[3 * i : 3 * i + 3], 6, 8, 3, "stretch", like=like)
        np.testing.assert_array_equal(array, want[0])
        assert array.dtype == want[0].dtype and kept.tolist() == want[1].tolist()
        assert (problems, span) == want[2:]
    assert blocks[1][2] == [(str(bad), "empty file (0 bytes)")]
    assert list(decode_blocks([], 3, 6, 8, 3, "stretch")) == []


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_reading_ahead_keeps_the_order_and_is_bounded():
    begun, taken, most = [], [], 0

    def work(i):
        begun.append(i)
        if i == 7:
            time.sleep(0.05)  # the others wait for their turn, not for it
        return i * i

    assert not readers()
    for value in read_ahead(work, iter(range(100)), ahead=10, workers=4):
        if len(taken) in (0, 40):
            deadline = time.monotonic() + 30
            while len(begun) < len(taken) + 11 and time.monotonic() < deadline:  # it does read while nobody asks
                time.sleep(0.001)
        taken.append(value)
        most = max(most, len(begun) - len(taken))
    assert taken == [i * i for i in range(100)] and sorted(begun) == list(range(100))
    assert most == 10
    assert not readers()


def test_several_files_are_read_at_once():
    together = threading.Barrier(3, timeout=30)
    assert list(read_ahead(lambda i: together.wait() * 0 + i, range(6), workers=3)) == list(range(6))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_reading_ends_with_its_reader(error):
    begun = []

    def work(i):
        begun.append(i)
        time.sleep(0.05 if i > 8 else 0.001)
        return i

    with pytest.raises(error), contextlib.closing(read_ahead(work, range(1000), ahead=50, workers=2)) as values:
        for value in values:
            if value == 5:
                raise error
    assert not readers() and len(begun) < 40

    def fail(i):
        if i == 5:
            raise error
        return work(i)

    taken = []
    begun.clear()
    with pytest.raises(error):
        taken.extend(read_ahead(fail, range(1000), ahead=50, workers=2))
    assert taken == list(range(5)) and not readers() and len(begun) < 40


def test_no_warning_gets_out_of_the_threads():
    filters = list(warnings.filters)
    list(read_ahead(lambda i: warnings.warn("strange", stacklevel=1), range(3)))  # warnings are errors here
    assert warnings.filters == filters


def test_one_alone_is_worked_out_without_a_thread():
    """A thread would take longer than a small file, and one image has to be scored at once."""
    where = []
    for items in ([7], iter([7])):
        assert list(read_ahead(lambda i: where.append(threading.current_thread()) or i, items)) == [7]
    assert set(where) == {threading.current_thread()} and list(read_ahead(str, [])) == []
    list(read_ahead(lambda i: warnings.warn("strange", stacklevel=1), [1]))
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda i: 1 / i, [0]))
