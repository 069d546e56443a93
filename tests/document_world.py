"""What the pages talk about, in one folder: images, tables, recordings and finished runs, generated and small."""

import csv  # noqa: I001
import dataclasses
import gzip
import shutil
import struct

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tests import documents
from tests.data.test_audio_windows import machine
from tests.data.test_row_windows import plant
from tests.support import blobs

from ganomaly_jax.cli import main
from ganomaly_jax.core import config, presets
from ganomaly_jax.report import run_report

SMALL = {
    "data": {"height": 16, "width": 16},
    "model": {"latent_size": 4, "features": 4},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"batch_size": 8, "steps": 100, "picture_every": 0},
    "mesh": {"devices": 1},
}
SIZES = config.Data.__init__.__defaults__  # for the page on which images have their own size
SENSORS = ("pressure", "flow", "level")
RATE = 16_000


def shrink(patch):
    """Makes all defaults, and the shipped configurations, those of `support.TINY`, and reports empty.

    So the commands and snippets of the pages run as they stand within seconds, with programs that other tests compile.
    """
    for name, values in SMALL.items():
        section = type(getattr(config.Config(), name))
        fields = [field.name for field in dataclasses.fields(section)]
        defaults = dict(zip(fields, section.__init__.__defaults__, strict=True)) | values
        patch.setattr(section.__init__, "__defaults__", tuple(defaults.values()))
    read = presets.read

    def small(name):
        found = read(name)
        for section, values in SMALL.items():
            vars(getattr(found, section)).update(values)
        return found

    patch.setattr(presets, "read", small)

    def page(workdir, cases, scored, residual_max, out=None):
        path = (out or workdir) / "report.html"
        path.write_text("<title>A report</title>")
        return path

    patch.setattr(run_report, "write", page)
    patch.setattr(Figure, "savefig", lambda figure, path, **_: Image.new("L", (1, 1)).save(path, "PNG"))


def build(folder):
    """Writes everything to an empty folder, which is the working directory."""
    _images(folder / "PHOTOS" / "good", 200, 0)
    _images(folder / "PHOTOS" / "bad", 12, 1, anomalous=True)
    (folder / "LABELLED").symlink_to("PHOTOS")
    _images(folder / "DATA" / "good", 80, 4)
    _images(folder / "DATA" / "bad", 8, 5, anomalous=True)
    for name, n in (("NEW", 40), ("NEW_NORMALS", 120), ("NORMALS", 40), ("INBOX", 8)):
        _images(folder / name, n, 2)
    for name in ("IMAGE", "image.png", "zero.png"):
        shutil.copy(folder / "PHOTOS" / "bad" / "0.png", folder / name)
    (folder / "notes.txt").write_text("no image\n")
    np.save(folder / "images.npy", np.stack([np.asarray(image) for image in _opened(64, 3)])[..., None])
    _table(
        folder / "lines.csv",
        ("path", "group"),
        [(f"{kind}/{i}.png", "ab"[i % 2]) for kind in ("PHOTOS/good", "PHOTOS/bad", "NEW") for i in range(200)],
    )
    rows = plant(700, 0)[:, :3]
    np.save(folder / "rows.npy", rows)
    for name in ("rows.csv", "plant.csv", "today.csv"):
        _table(folder / name, SENSORS, rows.round(4))
    for i in range(10):
        _recording(folder / "RECORDINGS" / f"{i}.wav", machine(i, 2, RATE))
    for name in ("today/7.wav", "pump.wav"):
        _recording(folder / name, machine(10, 14 if "/" in name else 2, RATE))
    np.save(folder / "waves.npy", np.stack([machine(i, 2, RATE) for i in range(10)]))
    [block] = [found.text for found in documents.items("docs/configuration.md") if found.language == "python"]
    (folder / "mine.py").write_text(block)
    train(folder)


def digits(folder):
    """Writes idx files in the layout of MNIST, of the classes 0 and 5."""
    folder.mkdir()
    for part, n, seed in (("train", 60, 4), ("t10k", 20, 5)):
        images = np.concatenate([blobs(n, seed), blobs(n, seed, anomalous=True)])[..., 0]
        for kind, array in (("images-idx3", images), ("labels-idx1", np.repeat([0, 5], n).astype(np.uint8))):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + array.tobytes())


def tables(folder):
    """Writes tables of sensors in two parts."""
    for part, seed in (("train", 1), ("test", 2)):
        (folder / part).mkdir(parents=True)
        _table(folder / part / "a.csv", SENSORS, plant(300, seed)[:, :3])


def train(folder):
    """Trains the runs that most pages begin with; each page has its own copies."""
    for line in (
        "train PHOTOS --workdir runs/mine",
        "train rows.csv --workdir runs/plant",
        "train RECORDINGS --config audio --workdir runs/pump",
    ):
        assert main.main(line.split()) == 0
    for name in ("other", "parts"):
        shutil.copytree("runs/mine", f"runs/{name}")


def _opened(n, seed, anomalous=False):
    """Images that are not of the network's size."""
    return [Image.fromarray(image[..., 0]).resize((20, 24)) for image in blobs(n, seed, anomalous)]


def _images(folder, n, seed, anomalous=False):
    folder.mkdir(parents=True)
    for i, image in enumerate(_opened(n, seed, anomalous)):
        image.save(folder / f"{i}.png")


def _table(path, header, rows):
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(header)
        lines.writerows(rows)


def _recording(path, wave):
    import soundfile

    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, wave, RATE)
