"""Hostile input to `predict` and to the scorer: the right score, or a row that says why not. No traceback, no hang.

The table of docs/hostile.md is made here; where it differs the test fails and says what it should be.
"""

import csv  # noqa: I001
import dataclasses
import io
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support import assert_scores_close, blobs

from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "hostile.md"
GREY = blobs(1, 3)[0, ..., 0]
BARS = np.kron(GREY, np.ones((4, 4), np.uint8))
PIPE, LOOP, FOLDER, MISSING, DENIED = "a named pipe", "a link to itself", "a folder", "no file", "a file without access"
SCORED = "scored"


def encoded(array, form="PNG", mode=None, **options):
    """The bytes of an image file."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def rotated(orientation, form):
    """A file whose pixels lie as EXIF says, so that it is `GREY` when it is turned upright."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    image = Image.fromarray(GREY)
    image = image if back is None else image.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, form, exif=exif)


def bomb(width, height):
    """A PNG of a few kB that says that it is so large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def cases():
    """(what, content or kind, what becomes of it): `SCORED`, the pixels that it counts as, or a reason's beginning."""
    palette = Image.fromarray(GREY, "L").convert("P")
    opaque = np.full_like(GREY, 255)
    rgb = np.stack([GREY] * 3, axis=-1)
    other = Image.fromarray(255 - GREY)
    with_nan = GREY.astype(np.float32)
    with_nan[3, 4] = np.nan
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    yield "8-bit grey", encoded(GREY), GREY
    yield "1 x 1 pixel", encoded(GREY[:1, :1]), np.full((16, 16), GREY[0, 0])
    yield "1 pixel wide, 3,000 high", encoded(np.repeat(GREY[:, :1], 3000 // 16, axis=0)), SCORED
    yield "20,000 pixels wide, 3 high", encoded(np.full((3, 20_000), 7, np.uint8)), np.full((16, 16), 7)
    yield "20,000 x 1,000 pixels", encoded(np.full((1000, 20_000), 7, np.uint8)), np.full((16, 16), 7)
    yield "1 bit", encoded(GREY > 100), np.where(GREY > 100, 255, 0)
    yield "grey and alpha (LA)", encoded(np.dstack([GREY, opaque])), GREY
    yield "colour where grey is expected", encoded(rgb), GREY
    yield "colour and alpha (RGBA)", encoded(np.dstack([rgb, opaque])), GREY
    yield "transparent all over", encoded(np.dstack([rgb, opaque * 0])), GREY * 0
    yield "palette", encoded(palette), GREY
    yield "CMYK, TIFF", encoded(Image.merge("CMYK", [Image.fromarray(255 - GREY)] * 3 + [other.point(lambda _: 0)]),
                                "TIFF"), GREY  # fmt: skip
    yield "CMYK, JPEG", encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=100), SCORED
    yield "16-bit grey, PNG", encoded(GREY.astype(np.uint16) * 257), GREY
    yield "16-bit grey, TIFF", encoded(GREY.astype(np.uint16) * 257, "TIFF"), GREY
    for orientation in range(1, 9):
        yield f"EXIF orientation {orientation}", rotated(orientation, "PNG"), GREY
    yield "animated GIF", encoded(GREY, "GIF", save_all=True, append_images=[other]), GREY
    yield "animated PNG", encoded(GREY, "PNG", save_all=True, append_images=[other]), GREY
    yield "animated WebP", encoded(rgb, "WEBP", save_all=True, append_images=[other], lossless=True), GREY
    yield "TIFF of several pages", encoded(GREY, "TIFF", save_all=True, append_images=[other]), GREY
    yield "JPEG called .png", encoded(GREY, "JPEG", quality=100), SCORED
    yield "name with spaces", encoded(GREY), GREY
    yield "größe 大きさ 🙂", encoded(GREY), GREY
    yield "name\nof two lines", encoded(GREY), GREY
    yield "name\x1b[2J with an escape", encoded(GREY), GREY
    yield "name \udcff that is no text", encoded(GREY), GREY
    yield "name of 240 letters" + 221 * "x", encoded(GREY), GREY
    yield "floating point, TIFF", encoded(GREY.astype(np.float32), "TIFF"), "floating-point or 32-bit pixels"
    yield "floating point with NaN", encoded(with_nan, "TIFF"), "floating-point or 32-bit pixels"
    yield "32-bit integers", encoded(GREY.astype(np.int32), "TIFF"), "floating-point or 32-bit pixels"
    yield "empty", b"", "empty file (0 bytes)"
    yield "text", b"This is no picture.\n", "not an image"
    yield "zeros", bytes(1000), "not an image"
    yield "HTML", b"<html><body>404 not found</body></html>", "not an image"
    yield "an archive", b"PK\x03\x04" + bytes(99), "not an image"
    yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"
    for form in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        whole = encoded(noise, form)
        yield f"{form}, the second half missing", whole[: len(whole) // 2], "damaged image"
        yield f"{form}, the first bytes alone", whole[:20], ("damaged image", "not an image")
    yield "9,000 x 9,000 pixels, compressed to 1 kB", bomb(9000, 9000), "too large"
    yield "60,000 x 60,000 pixels, compressed to 1 kB", bomb(60_000, 60_000), "too large"
    yield "1 x 60 million pixels", bomb(1, 60_000_000), "too large"
    yield (
        "5,000 x 5,000 pixels, TIFF in one piece",
        encoded(Image.new("1", (5000, 5000)), "TIFF", compression="group4", tiffinfo={278: 5000}),
        "too large",
    )
    yield "no pixels", bomb(0, 5), "damaged image"
    yield PIPE, PIPE, "not a regular file"
    yield LOOP, LOOP, "a loop of symbolic links"
    yield FOLDER, FOLDER, SCORED  # of its images, there being none
    yield MISSING, MISSING, "no such file"
    yield DENIED, DENIED, "permission denied"


def put(folder, what, content):
    """The case as a file, and its path."""
    path = folder / f"{what.replace('/', '_')}.png"
    if content == PIPE:
        os.mkfifo(path)
    elif content == LOOP:
        path.symlink_to(path)
    elif content == FOLDER:
        path.mkdir()
    elif content != MISSING:
        path.write_bytes(encoded(GREY) if content == DENIED else content)
        if content == DENIED:
            path.chmod(0)
    return path


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """(rows, exit code) of `predict` over all cases, {what: path}."""
    folder, out = tmp_path_factory.mktemp("hostile files"), tmp_path_factory.mktemp("out")
    paths = {what: put(folder, what, content) for what, content, _ in cases()}
    if os.access(paths[DENIED], os.R_OK):  # root may read everything
        paths.pop(DENIED)
    arguments = ["predict", "--workdir", str(trained[0]), "--out", str(out / "rows.csv"), *map(str, paths.values())]
    signal.alarm(240)  # nothing may hang
    code = main.main(arguments)
    signal.alarm(0)
    with (out / "rows.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    return rows, code, paths


def expected():
    return [(what, want) for what, content, want in cases() if content not in (FOLDER, DENIED)]


def test_each_has_the_right_score_or_a_reason(trained, predicted):
    rows, code, paths = predicted
    assert code == 3
    assert len(rows) == len(paths) - 1  # the folder has no images and so no row
    for what, want in expected():
        row = rows[str(paths[what]).encode("utf-8", "backslashreplace").decode()]
        if isinstance(want, (str, tuple)) and want != SCORED:
            assert row["verdict"] == "invalid" and row["reason"].startswith(want) and not row["score"], (what, row)
            assert "\n" not in row["reason"] and "Traceback" not in row["reason"], what
            continue
        assert row["verdict"] in ("normal", "anomalous") and row["reason"] == "", (what, row)
        if not isinstance(want, str):
            score = trained[1](np.asarray(want, np.uint8)[None])[0]
            np.testing.assert_allclose(float(row["score"]), score, rtol=2e-2, err_msg=what)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_terminal_gets_lines_and_no_commands(trained, tmp_path, monkeypatch, encoding):
    """A name may hold anything; what is printed is one line a file, with nothing that a terminal would obey."""
    names = [what for what, content, want in cases() if want is GREY and content == encoded(GREY)]
    files = [put(tmp_path, what, b"" if i % 2 else encoded(GREY)) for i, what in enumerate(names)]
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding, errors="strict"))
    arguments = ["predict", "--workdir", str(trained[0]), "--out", str(tmp_path / "rows.csv"), *map(str, files)]
    assert main.main(arguments) == 3
    sys.stdout.flush()
    text = printed.getvalue().decode(encoding)
    assert "\x1b" not in text and len(text.splitlines()) == len(files) + 2
    assert "name\\nof two lines" in text and "\\udcff" in text and ("größe" in text or encoding == "ascii")


def table():
    lines = ["| input | verdict | reason |", "| --- | --- | --- |"]
    for what, content, want in cases():
        if content == FOLDER:
            lines.append("| a folder | one row for each image file in it | |")
            continue
        name = re.sub(r"x{9,}", "...", ascii(what)[1:-1] if not what.isprintable() else what)
        if isinstance(want, (str, tuple)) and want != SCORED:
            reasons = (want,) if isinstance(want, str) else want
            lines.append(f"| {name} | invalid | {' or '.join(f'`{reason}`' for reason in reasons)} |")
        else:
            lines.append(f"| {name} | scored | |")
    return "\n".join(lines)


def test_the_page_says_the_same():
    found = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")[2].partition("\n<!-- end -->")[0]
    assert found == table(), f"docs/hostile.md is to hold between its marks:\n{table()}"


def test_a_file_without_access(trained, tmp_path, monkeypatch):
    """Root may read everything, so that it is simulated here."""
    path = put(tmp_path, "a", encoded(GREY))
    real = open

    def refuse(file, *rest, **options):
        if os.fspath(file) == os.fspath(path):
            raise PermissionError(13, "Permission denied")
        return real(file, *rest, **options)

    monkeypatch.setattr("builtins.open", refuse)
    judged, problems = trained[1].judge_files([path])
    assert judged.verdicts == ["invalid"] and problems == [(str(path), "permission denied")]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_random_flips_give_a_score_or_a_reason(trained, tmp_path, form):
    random = np.random.default_rng(7)
    whole = encoded(BARS, form, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
    paths = []
    for i in range(200):
        content = bytearray(whole)
        # Half of them near the beginning, where headers are.
        for at in random.integers(0, len(content) if i % 2 else min(len(content), 200), 1 + i % 4):
            content[at] ^= int(random.integers(1, 256))
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(content)
    judged, problems = trained[1].judge_files(paths)
    assert len(judged.scores) == 200
    reasons = dict(problems)
    for path, verdict, score in zip(paths, judged.verdicts, judged.scores, strict=True):
        assert np.isfinite(score) == (verdict != "invalid")
        assert verdict != "invalid" or reasons[str(path)].strip(), path
        assert "\n" not in reasons.get(str(path), "")
    assert 0 < len(problems) < 200  # both happen


def test_ten_thousand_files_in_a_folder(trained, tmp_path, capsys):
    content = encoded(GREY)
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(10_000):
        (folder / f"{i:05}.png").write_bytes(content if i != 5000 else content[:60])
    out = tmp_path / "rows.csv"
    assert main.main(["predict", "--workdir", str(trained[0]), "--out", str(out), str(folder)]) == 3
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == [f"{i:05}.png" for i in range(10_000)]
    assert {row["verdict"] for i, row in enumerate(rows) if i != 5000} == {rows[0]["verdict"]} != {"invalid"}
    assert rows[5000]["verdict"] == "invalid" and rows[5000]["reason"].startswith("damaged image")
    assert "1 invalid" in capsys.readouterr().out


LARGE = {
    "colour, 62 million pixels": lambda path: Image.new("RGB", (7900, 7900), (9, 8, 7)).save(path, "PNG"),
    "very wide with alpha": lambda path: Image.new("RGBA", (1_000_000, 60)).save(path, "PNG"),
    "animated, 16 million pixels": lambda path: Image.new("RGBA", (4000, 4000)).save(
        path, "PNG", save_all=True, append_images=[Image.new("RGBA", (4000, 4000), (1, 2, 3, 4))]
    ),
}


@pytest.mark.parametrize("what", LARGE)
def test_one_image_takes_less_than_300_mb(tmp_path, what):
    """The largest that are read, decoded as `predict` does, in a process of their own: the peak over a small one's."""
    path, small = tmp_path / "large", tmp_path / "small"
    LARGE[what](path)
    small.write_bytes(encoded(GREY))
    run = textwrap.dedent("""
        import sys
        from ganomaly_jax.data.images import files
        def peak():
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
        files.decode_files([sys.argv[2]], 64, 64, 3, "stretch")
        before = peak()
        pixels, _, problems, _ = files.decode_files([sys.argv[1]], 64, 64, 3, "stretch")
        assert len(pixels) == 1 and not problems, problems
        print((peak() - before) // 1024)
    """)
    call = [sys.executable, "-c", run, str(path), str(small)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    assert int(done.stdout) < 300


def test_reduction_of_any_shape_keeps_the_mean(tmp_path, monkeypatch):
    """Pieces that are smaller than the picture, single rows and single columns: no pixel counts twice or not at all."""
    from ganomaly_jax.data.images import reduction

    monkeypatch.setattr(reduction, "_PIECE", 8)
    random = np.random.default_rng(0)
    for height, width, step in ((40, 60, 4), (1, 90, 7), (90, 1, 7), (33, 47, 16), (5, 5, 9)):
        array = random.integers(0, 256, (height, width), np.uint8)
        small = reduction.average_blocks(
            Image.fromarray(array), step, lambda image: np.asarray(image, np.float32)[..., None]
        )
        assert small.shape == (max(height // step, 1), max(width // step, 1), 1)
        down, across = (
            np.linspace(0, n, m + 1).round().astype(int) for n, m in zip(array.shape, small.shape, strict=False)
        )
        weights = np.diff(down)[:, None] * np.diff(across)
        np.testing.assert_allclose((small[..., 0] * weights).sum(), array.sum(dtype=float), rtol=1e-5)
        np.testing.assert_allclose(small[0, 0, 0], array[: down[1], : across[1]].mean(), rtol=1e-5)


def test_the_scorer_takes_a_folder_as_predict_does(trained, tmp_path):
    scorer = trained[1]
    with pytest.raises(UserError, match="no image files in"):
        scorer(tmp_path)
    x = blobs(3, 4)
    for i, image in enumerate(x):
        (tmp_path / f"{i}.png").write_bytes(encoded(image[..., 0]))
    (tmp_path / "notes.txt").write_text("no image")
    np.testing.assert_array_equal(scorer(str(tmp_path)), scorer(x))
    np.testing.assert_array_equal(scorer(tmp_path), scorer(x))
    assert scorer.judge([tmp_path]).verdicts == ["invalid"]  # among files it is no image


def test_arrays_of_other_sizes_are_resized_and_other_things_refused(trained):
    scorer = trained[1]
    one = blobs(1, 3)
    flat = scorer(np.full((1, 16, 16, 1), 7, np.uint8))
    for height, width in ((37, 53), (1, 1), (1, 400), (300, 16)):
        np.testing.assert_array_equal(scorer(np.full((1, height, width, 1), 7, np.uint8)), flat)
    for bad, match in (
        (one[0], "expected"),
        (np.zeros((0, 16, 16, 1), np.uint8), "B at least 1"),
        (np.zeros((1, 16, 16, 3), np.uint8), "expected"),
        (one.astype(np.int64), "of type int64"),
        (one.astype(object), "of type object"),
        (one.astype(str), "of type"),
        (one.astype(complex), "of type complex"),
        ([], "expected"),
        (None, "expected"),
        (7, "expected"),
        ({"a": 1}, "expected"),
        ([one[0], one[0, :5]], "expected"),
        ((image for image in one), "generator: expected"),
    ):
        with pytest.raises(UserError, match=match):
            scorer(bad)


def test_types_that_are_not_those_of_the_training(trained):
    scorer, one = trained[1], blobs(2, 3)
    unit = one.astype(np.float32) / 127.5 - 1
    assert_scores_close(scorer, one, scorer(unit), scorer(one))
    with pytest.raises(UserError, match=r"from 0 to .*expected \[-1, 1\].*trained on integer"):
        scorer(np.concatenate([one.astype(np.float32), one.astype(np.float32) * 0]))
    floating = dataclasses.replace(scorer, dtype="float32", low=0.0, high=255.0)
    assert_scores_close(scorer, one, floating(one.astype(np.float32)), scorer(one))
    for kind in (np.uint8, np.uint16):
        with pytest.raises(UserError, match=rf"of type {np.dtype(kind)}: expected floating point from 0 to 255"):
            floating(one.astype(kind))
    assert not np.isfinite(scorer(np.full((1, 16, 16, 1), np.nan, np.float32))).any()
    assert not np.isfinite(floating(np.full((1, 16, 16, 1), np.inf, np.float32))).any()


def test_files_that_do_not_fit_a_detector_of_floating_point(trained, tmp_path):
    floating = dataclasses.replace(trained[1], dtype="float32", low=-5.0, high=300.0)
    values = GREY.astype(np.float32)
    broken = values.copy()
    broken[0, 0] = np.nan
    files = {"good.tif": encoded(values, "TIFF"), "nan.tif": encoded(broken, "TIFF"), "grey.png": encoded(GREY)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    judged, problems = floating.judge_files([tmp_path / name for name in files])
    assert judged.verdicts[0] != "invalid" and judged.verdicts[1:] == ["invalid", "invalid"]
    assert [(Path(path).name, reason) for path, reason in problems] == [
        ("grey.png", "uint8 pixels, expected floating point: they have no common scale")
    ]
