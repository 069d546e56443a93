"""Valid files of every format that the package reads, a few bytes each: what fuzzing starts from."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def _pixels(height: int, width: int, channels: int = 1) -> np.ndarray:
    """Returns deterministic pixels `[height, width, channels]` uint8, grey without the last axis."""
    found = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)
    return found[..., 0] if channels == 1 else found


def images() -> list[bytes]:
    """Returns image files of every format and depth that is read."""
    from PIL import Image

    grey = Image.fromarray(_pixels(12, 17))
    colour = Image.fromarray(_pixels(16, 16, 3))
    deep = Image.fromarray(_pixels(9, 8).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6

    def saved(image: Image.Image, form: str, **options: Any) -> bytes:
        kept = io.BytesIO()
        image.save(kept, form, **options)
        return kept.getvalue()

    found = [saved(image, "PNG") for image in (grey, colour, deep, grey.convert("1"), colour.convert("P"))]
    found += [saved(image.convert(mode), "PNG") for image, mode in ((grey, "LA"), (colour, "RGBA"))]
    found += [saved(grey, "PNG", exif=exif), saved(grey, "PNG", save_all=True, append_images=[grey.rotate(180)])]
    found += [saved(colour, "JPEG", exif=exif), saved(colour, "JPEG", progressive=True), saved(grey, "JPEG")]
    found += [saved(colour.convert("CMYK"), "JPEG"), saved(colour, "JPEG", restart_marker_rows=1)]
    found += [saved(image, "BMP") for image in (grey, colour, grey.convert("1"), colour.convert("RGBA"))]
    found += [saved(grey, "DIB"), saved(colour.convert("P"), "BMP")]
    found += [saved(grey, "GIF"), saved(grey, "GIF", save_all=True, append_images=[grey.rotate(180)])]
    found += [saved(colour, "WEBP"), saved(colour.convert("RGBA"), "WEBP", lossless=True)]
    found += [saved(image, "PPM") for image in (grey, colour, grey.convert("1"), deep)]
    found += [b"P1\n# one\n3 2\n1 0 1\n0 1 0\n", b"P2\n3 2\n255\n1 2 3\n4 5 6\n", b"P3\n1 2\n15\n1 2 3 4 5 6\n"]
    found += [saved(image, "TIFF") for image in (grey, colour, deep, Image.fromarray(np.ones((4, 5), np.float32)))]
    found += [
        saved(colour, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    ]
    found += [saved(grey.convert("1"), "TIFF", compression="group4"), saved(grey, "TIFF", big_tiff=True)]
    found.append(saved(grey, "TIFF", save_all=True, append_images=[grey]))
    return found


def idx() -> list[bytes]:
    """Returns idx files of several types, some compressed with gzip."""

    def file(kind: int, array: np.ndarray) -> bytes:
        return struct.pack(f">2xBB{array.ndim}I", kind, array.ndim, *array.shape) + array.tobytes()

    made = [file(8, np.arange(48, dtype=">u1").reshape(3, 4, 4)), file(11, np.arange(24, dtype=">i2").reshape(2, 3, 4))]
    made += [file(13, np.linspace(0, 1, 18, dtype=">f4").reshape(2, 3, 3)), file(8, np.arange(5, dtype=">u1"))]
    return made + [gzip.compress(one, mtime=0) for one in made[:2]]


def npy(array: np.ndarray) -> bytes:
    """Returns an array as an npy file."""
    kept = io.BytesIO()
    np.save(kept, array)
    return kept.getvalue()


def npz(arrays: Mapping[str, Any], compressed: bool = False) -> bytes:
    """Returns arrays as an npz file."""
    kept = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(kept, **arrays)
    return kept.getvalue()


def arrays() -> list[bytes]:
    """Returns npy and npz files of images, rows and waveforms."""
    grey, words = np.arange(48, dtype=np.uint8).reshape(3, 4, 4), np.array(["good", "bad", "good"])
    held: list[dict[str, Any]] = [
        {"images": grey, "labels": np.array([0, 0, 1])},
        {"images": grey[..., None].astype(np.float32) / 48, "labels": words},
        {"x_train": grey, "x_test": grey[:2], "y_test": np.array([0, 1])},
        {"images": grey, "labels": np.array([0, 1, 1]), "classes": np.array(["normal", "scratch"])},
        {"rows": np.arange(24.0).reshape(8, 3), "labels": np.zeros(8, int), "columns": np.array(["a", "b", "c"])},
        {"waveforms": np.sin(np.arange(4096.0)).reshape(1, -1).astype(np.float32), "rate": np.array(1000)},
    ]
    single = [grey, grey.astype(np.uint16), grey / 47, grey > 9, np.asfortranarray(grey), grey.astype(">i4")]
    return [npy(one) for one in single] + [npz(one) for one in held] + [npz(held[0], compressed=True)]


def tables() -> list[bytes]:
    """Returns CSV files of sensors."""
    return [
        b"time,a,b,label\n0,1,2,0\n1,1.5,,0\n2,nan,4,1\n3,1e3,5,0\n",
        b"a;b;c\n1,5;2;3\n4;5,25;6\n7;8;9\n",
        b"a\tb\n1\t2\n3\t4\n5\t6\n",
        b'\xef\xbb\xbf"pump, inlet","flow ""x"""\r\n1,2\r\n"3",4\r\n',
        b"datetime,a\n2024-01-01T00:00:00,1\n2024-01-01T00:00:01,2\n",
        b'a,b\n"1,000",2\n3,4\n',
        "größe,a\n1,2\n3,4\n".encode("latin-1"),
        b"a,b,label\n1,2,normal\n3,4,leak\n",
    ]


def lines() -> list[bytes]:
    """Returns rows of the sensors a and b as they arrive in a stream."""
    return [
        b"time,a,b\n0,1,2\n1,,4\ntime,a,b\n2,5,6\n",
        b"a;b\n1,5;2\n3;4\n",
        b'"a","b"\r\n"1","2"\r\n',
        b'{"time": "2024-01-01T00:00:00Z", "a": 1, "b": 2.5}\n{"a": null, "b": "3"}\n',
        b"\xef\xbb\xbfdatetime,b,a\n2024-01-01 00:00:00,1,2\n",
    ]


def recordings() -> list[bytes]:
    """Returns recordings of several formats."""
    import soundfile

    wave = np.sin(np.arange(2600) * 0.3) * 0.5
    found = []
    for form, kind in (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "PCM_24"), ("FLAC", "PCM_16"),
                       ("OGG", "VORBIS"), ("AIFF", "PCM_16"), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("AU", "PCM_16"),
                       ("CAF", "PCM_16")):  # fmt: skip
        kept = io.BytesIO()
        soundfile.write(kept, np.stack([wave, -wave], 1) if kind == "FLOAT" else wave, 8000, kind, format=form)
        found.append(kept.getvalue())
    return found


def commands() -> list[bytes]:
    """Returns command lines, a word a line."""
    given: list[list[str]] = [
        ["train", "photos", "--workdir", "w", "--config.train.epochs=5", "--config.data.tile", "64"],
        ["train", "--config", "surface", "--workdir", "w", "--config.optimizer.learning_rate=1e-3"],
        ["train", "--data", "x.csv", "--workdir", "w", "--config.data.columns=a,-b", "--config.data.missing=last"],
        ["evaluate", "--workdir", "w", "--false-positive-rate", "0.01"],
        ["predict", "--workdir", "w", "a.png", "b"],
        ["monitor", "--workdir", "w", "-", "--state", "s.json", "--alarm", "3/5", "--cool-down", "10"],
        ["serve", "--workdir", "w", "--port", "8080", "--max-body", "20MB"],
        ["recalibrate", "--workdir", "w", "--false-positive-rate=.05"],
        ["plan", "--config", "mnist", "--config.evaluate.score=squared+pixel", "--config.data.sound.scale=mel"],
        ["config", "train.epochs"],
        ["compare", "a", "b"],
    ]
    return ["\n".join(words).encode() for words in given]


def documents(value: Any) -> Iterator[bytes]:
    """Yields a JSON value in the two ways of writing it that the package uses."""
    yield json.dumps(value).encode()
    yield json.dumps(value, indent=1).encode()
