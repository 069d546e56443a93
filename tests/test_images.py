"""Decoding: every kind of pixel comes out right, and what cannot be read is named, never raised through."""

import contextlib
import os
import struct
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

from ganomaly_jax import images
from ganomaly_jax.errors import UserError
from ganomaly_jax.images import (
    decode_blocks,
    decode_files,
    image_size,
    list_images,
    read_ahead,
    read_image,
    scan_folder,
)

Image = pytest.importorskip("PIL.Image")

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


def save(path, array, mode=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp", "gif", "pgm", "jpg"])
def test_grey_of_each_format(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {"quality": 100} if ending == "jpg" else {}
    array, span = read_image(save(tmp_path / f"größe {ending}.{ending}", RAMP, **options))
    assert array.dtype == np.uint8 and span == (0, 255)
    assert array.shape == (6, 8, 3 if ending == "webp" else 1)  # WebP has no grey
    assert np.abs(array.astype(int) - RAMP[..., None]).max() <= (3 if ending == "jpg" else 0)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp", "ppm"])
def test_colour_of_each_format(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {}
    array, span = read_image(save(tmp_path / f"a.{ending}", COLOUR, **options))
    assert span == (0, 255)
    np.testing.assert_array_equal(array, COLOUR)


def test_content_counts_not_the_name(tmp_path):
    save(tmp_path / "a.png", COLOUR)
    os.rename(tmp_path / "a.png", tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg")[0], COLOUR)


def test_alpha_is_composited_over_black(tmp_path):
    alpha = np.full((6, 8), 128, np.uint8)
    alpha[0] = 0
    want = np.rint(COLOUR * (alpha[..., None] / 255.0))
    rgba = read_image(save(tmp_path / "rgba.png", np.dstack([COLOUR, alpha])))[0]
    assert rgba.shape == (6, 8, 3) and np.abs(rgba - want).max() <= 1 and not rgba[0].any()
    la = read_image(save(tmp_path / "la.png", np.dstack([RAMP, alpha])))[0]
    assert la.shape == (6, 8, 1) and np.abs(la[..., 0] - want[..., 0]).max() <= 1


def test_palettes(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    plain = read_image(save(tmp_path / "p.png", image))[0]
    np.testing.assert_array_equal(plain, [[[10, 20, 30], [200, 100, 50]], [[7, 8, 9], [200, 100, 50]]])
    for name, transparency in (("index", 1), ("bytes", bytes([255, 0, 255]))):
        seen = read_image(save(tmp_path / f"{name}.png", image, transparency=transparency))[0]
        np.testing.assert_array_equal(seen, [[[10, 20, 30], [0, 0, 0]], [[7, 8, 9], [0, 0, 0]]])
    gif = read_image(save(tmp_path / "p.gif", image))[0]
    np.testing.assert_array_equal(gif, plain)


def test_transparent_colour_of_grey_and_rgb(tmp_path):
    grey = read_image(save(tmp_path / "l.png", np.array([[9, 50]], np.uint8), transparency=50))[0]
    np.testing.assert_array_equal(grey[..., 0], [[9, 0]])
    rgb = read_image(save(tmp_path / "rgb.png", np.uint8([[[1, 2, 3], [4, 5, 6]]]), transparency=(4, 5, 6)))[0]
    np.testing.assert_array_equal(rgb, [[[1, 2, 3], [0, 0, 0]]])


def test_one_bit_and_cmyk(tmp_path):
    bits = read_image(save(tmp_path / "1.png", RAMP > 100))[0]
    np.testing.assert_array_equal(bits[..., 0], np.where(RAMP > 100, 255, 0))
    cmyk = Image.new("CMYK", (4, 3), (255, 0, 0, 0))
    for ending in ("jpg", "tif"):
        array = read_image(save(tmp_path / f"c.{ending}", cmyk))[0]
        assert array.shape == (3, 4, 3)
        assert array[..., 0].max() <= 40 and array[..., 1:].min() >= 120  # full cyan has no red


WIDE = np.array([[0, 1, 255, 256], [4095, 40000, 65534, 65535]], np.uint16)


def test_sixteen_bits_are_kept(tmp_path):
    for name in ("a.png", "a.tif", "b.pgm"):
        array, span = read_image(save(tmp_path / name, WIDE))
        assert array.dtype == np.uint16 and array.dtype.isnative and span == (0, 65535), name
        np.testing.assert_array_equal(array[..., 0], WIDE, err_msg=name)
    big = Image.frombytes("I;16B", (4, 2), WIDE.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(save(tmp_path / "big.tif", big))[0][..., 0], WIDE)
    white_is_zero = save(tmp_path / "inverted.tif", Image.fromarray(WIDE), tiffinfo={262: 0})
    np.testing.assert_array_equal(read_image(white_is_zero)[0][..., 0], 65535 - WIDE)


def test_twelve_bits_are_spread_over_sixteen():
    array, span = images._depth(np.array([[[0], [2048], [4095]]], np.uint16), "TIFF", (12,), False)
    assert array.ravel().tolist() == [0, 32776, 65535] and span == (0, 65535)


def test_floating_point_and_32_bit_integers(tmp_path):
    values = np.array([[-3.5, 0.25], [1e20, np.nan]], np.float32)
    array, span = read_image(save(tmp_path / "f.tif", values))
    assert array.dtype == np.float32 and span is None
    np.testing.assert_array_equal(array[..., 0], values)
    array, span = read_image(save(tmp_path / "i.tif", np.array([[-70000, 70000]], np.int32)))
    assert array.dtype == np.float32 and span is None and array.ravel().tolist() == [-70000, 70000]


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, ending):
    from PIL import ImageOps

    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :8], array[8:, 24:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{ending}", array, exif=exif)
    with Image.open(path) as image:
        want = np.asarray(ImageOps.exif_transpose(image))
    got = read_image(path)[0]
    assert got.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    np.testing.assert_array_equal(got, want)
    assert orientation == 1 or got.shape != array.shape or (got.astype(int) - array).any()


def test_only_the_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (10, 200)]
    for ending in ("gif", "tif"):
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
        assert (read_image(tmp_path / f"a.{ending}")[0] == 10).all()


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def hostile(folder):
    """(path, how the reason begins) of files that must be refused."""
    good = save(folder / "good.png", COLOUR).read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    made = {
        "empty.png": (b"", "empty file (0 bytes)"),
        "text.jpg": (b"This is no picture.\n" * 9, "not an image"),
        "zeros.png": (bytes(1000), "not an image"),
        "magic only.png": (b"\x89PNG", "damaged image"),
        "magic.jpg": (b"\xff\xd8\xff\xe0" + b"garbage" * 9, "damaged image"),
        "cut header.png": (good[:20], "damaged image"),
        "bomb.png": (png_header(9000, 9000), "too large: 9000 x 9000"),
        "huge bomb.png": (png_header(60000, 60000), "too large: 3600 million"),
        "wide bomb.bmp": (
            b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 50000, 50000, 1, 24, *[0] * 6),
            "too large",
        ),
        "nothing.png": (png_header(0, 5), "damaged image"),
    }
    for ending in ("png", "jpg", "webp", "bmp", "tif", "gif"):
        whole = save(folder / f"whole.{ending}", noise).read_bytes()
        made[f"cut.{ending}"] = whole[: len(whole) // 2], "damaged image"
    packed = save(folder / "whole packed.tif", noise, compression="tiff_lzw").read_bytes()
    made["cut packed.tif"] = packed[:100] + bytes(4000) + packed[4100:], "damaged image"
    for name, (content, reason) in made.items():
        (folder / name).write_bytes(content)
        yield folder / name, reason
    (folder / "folder.png").mkdir()
    yield folder / "folder.png", "a directory"
    (folder / "loop.png").symlink_to(folder / "loop.png")
    yield folder / "loop.png", "a loop of symbolic links"
    (folder / "dangling.png").symlink_to(folder / "not here")
    yield folder / "dangling.png", "no such file"
    os.mkfifo(folder / "pipe.png")
    yield folder / "pipe.png", "not a regular file"
    yield folder / "missing.png", "no such file"
    yield Path("nul\0.png"), "not a file name"


def test_hostile_files_are_refused_by_name(tmp_path, capfd):
    for path, reason in hostile(tmp_path):
        with pytest.raises(UserError) as refused:
            read_image(path)
        message = str(refused.value)
        assert message.startswith(reason) and "\n" not in message and path.name in message, (path, message)
        size = image_size(path)
        assert size is None or reason.startswith(("damaged", "too large")), path
    out, err = capfd.readouterr()
    assert out == "" and "arning" not in err  # libtiff's own one line on a damaged strip cannot be silenced


def test_hostile_files_are_rows_and_the_others_are_read(tmp_path):
    bad = list(hostile(tmp_path))
    paths = [tmp_path / "good.png", *(path for path, _ in bad), save(tmp_path / "z.png", 255 - COLOUR)]
    pixels, kept, problems, _ = decode_files(paths, 6, 8, 3, "stretch")
    assert kept.tolist() == [0, len(paths) - 1] and kept.dtype == np.int64
    np.testing.assert_array_equal(pixels, [COLOUR, 255 - COLOUR])
    assert [path for path, _ in problems] == [str(path) for path, _ in bad]
    assert all(row[1].startswith(reason) for row, (_, reason) in zip(problems, bad, strict=True))
    assert not any("/" in reason for _, reason in problems)  # the path has its own column


def test_a_bomb_takes_no_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(12000, 12000))
    tracemalloc.start()
    with pytest.raises(UserError, match="144 million pixels, at most 64 million"):
        read_image(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_decoders_that_need_more_memory_get_smaller_files(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MAX_PIXELS_OF", {"WebP": 40, "progressive JPEG": 40})
    for name, options in (("a.webp", {}), ("b.jpg", {"progressive": True})):
        with pytest.raises(UserError, match="too large: 8 x 6, 0 million pixels, at most 0 million are read of"):
            read_image(save(tmp_path / name, COLOUR, **options))
    assert read_image(save(tmp_path / "c.jpg", COLOUR))[0].shape == (6, 8, 3)


def test_permission_denied(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", RAMP)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"^permission denied: .*a.png$"):
        read_image(path)


def test_damaged_exif_costs_only_the_orientation(tmp_path, monkeypatch):
    path = save(tmp_path / "a.jpg", COLOUR, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(path)[0].shape == (6, 8, 3)

    def fail(_):
        raise struct.error("unpack requires a buffer of 12 bytes")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert read_image(path)[0].shape == (6, 8, 3)


def test_random_damage_is_read_or_refused(tmp_path):
    random = np.random.default_rng(1)
    originals = [save(tmp_path / f"o.{e}", COLOUR).read_bytes() for e in ("png", "jpg", "bmp", "tif", "gif", "webp")]
    path = tmp_path / "damaged"
    for i in range(300):
        content = bytearray(originals[i % 6])
        for at in random.integers(0, len(content), 3):
            content[at] = random.integers(256)
        path.write_bytes(content)
        try:
            array, _ = read_image(path)
            assert array.ndim == 3 and array.shape[2] in (1, 3)
        except UserError as refused:
            assert "\n" not in str(refused)


def test_large_files_are_read_small_and_alike(tmp_path, monkeypatch):
    y, x = np.mgrid[:403, :605]
    smooth = np.stack([y / 2, x / 3, (x + y) / 5], axis=-1).astype(np.uint8)
    alpha = np.full(smooth.shape[:2], 200, np.uint8)
    wide = smooth[..., 0].astype(np.uint16) * 257
    broken = smooth[..., 0].astype(np.float32)
    broken[402, 604] = np.nan  # in the last, incomplete block
    files = [
        save(tmp_path / "a.jpg", smooth),
        save(tmp_path / "b.png", smooth),
        save(tmp_path / "c.png", np.dstack([smooth, alpha])),
        save(tmp_path / "d.png", wide),
        save(tmp_path / "e.tif", broken),
    ]
    full = [decode_files([path], 32, 32, 0, "stretch")[0][0].astype(np.float32) for path in files]
    monkeypatch.setattr(images, "LARGE", 10_000)
    assert [max(read_image(path, (32, 32))[0].shape) for path in files] == [152, 100, 100, 100, 100]
    for path, want in zip(files, full, strict=True):
        got = decode_files([path], 32, 32, 0, "stretch")[0][0].astype(np.float32)
        bad = np.isnan(got)
        assert bad.any() == (path.name == "e.tif") == np.isnan(want).any(), path
        assert np.abs(got - want)[~bad & ~np.isnan(want)].max() < {"a.jpg": 2.5, "d.png": 200}.get(path.name, 1.5), path
    assert read_image(files[1])[0].shape == smooth.shape  # no target, no reduction


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
    assert kept.tolist() == [1] and "3 channels where 4 are wanted" in problems[0][1]
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


def test_sizes_from_the_header(tmp_path):
    assert image_size(save(tmp_path / "a.png", COLOUR)) == (6, 8)
    assert image_size(tmp_path / "nowhere.png") is None


def test_importing_takes_neither_pillow_nor_jax():
    import subprocess

    late = {"PIL", "jax", "tqdm", "tensorflow_datasets"}
    code = f"import sys, ganomaly_jax.sources; print(sorted({late} & set(sys.modules)))"
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
