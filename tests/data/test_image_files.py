"""Decoding: every kind of pixel comes out right, and what cannot be read is named, never raised through."""

import os
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images.decode import image_size, read_image
from ganomaly_jax.data.images.files import decode_files

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
    array, span = decode._normalise_depth(np.array([[[0], [2048], [4095]]], np.uint16), "TIFF", (12,), False)
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
        assert message.startswith(reason) and "\n" not in message and printable(path.name) in message, (path, message)
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
    assert [path for path, _ in problems] == [printable(str(path)) for path, _ in bad]
    assert all(row[1].startswith(reason) for row, (_, reason) in zip(problems, bad, strict=True))
    assert not any("/" in reason for _, reason in problems)  # the path has its own column


def test_a_bomb_takes_no_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(12000, 12000))
    tracemalloc.start()
    with pytest.raises(UserError, match="144 million pixels; the limit is 64 million"):
        read_image(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_decoders_that_need_more_memory_get_smaller_files(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "_MAX_PIXELS_OF", {"WebP": 40, "progressive JPEG": 40})
    for name, options in (("a.webp", {}), ("b.jpg", {"progressive": True})):
        with pytest.raises(UserError, match="too large: 8 x 6, 0 million pixels; the limit for "):
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
    monkeypatch.setattr(decode, "LARGE", 10_000)
    assert [max(read_image(path, (32, 32))[0].shape) for path in files] == [152, 100, 100, 100, 100]
    for path, want in zip(files, full, strict=True):
        got = decode_files([path], 32, 32, 0, "stretch")[0][0].astype(np.float32)
        bad = np.isnan(got)
        assert bad.any() == (path.name == "e.tif") == np.isnan(want).any(), path
        assert np.abs(got - want)[~bad & ~np.isnan(want)].max() < {"a.jpg": 2.5, "d.png": 200}.get(path.name, 1.5), path
    assert read_image(files[1])[0].shape == smooth.shape  # no target, no reduction


def test_sizes_from_the_header(tmp_path):
    assert image_size(save(tmp_path / "a.png", COLOUR)) == (6, 8)
    assert image_size(tmp_path / "nowhere.png") is None


def test_importing_takes_neither_pillow_nor_jax():
    import subprocess

    late = {"PIL", "jax", "tqdm", "tensorflow_datasets"}
    code = f"import sys, ganomaly_jax.data.sources; print(sorted({late} & set(sys.modules)))"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
