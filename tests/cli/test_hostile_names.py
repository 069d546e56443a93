"""Whatever files, classes and sensors are called: what a terminal gets are lines, and nothing that it would obey."""

import re

import numpy as np
import pytest
from PIL import Image

from ganomaly_jax.cli import main

EVIL = "\x1b]0;owned\x07\x1b[2J\nganomaly: all is well\r\x9b31m\u202e"
# Everything that may end a line or act: ESC, C1, bidirectional overrides.
ACTS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def said(capfd, *words):
    code = main.main(list(map(str, words)))
    text = "".join(capfd.readouterr())
    assert not ACTS.search(text), repr(text[max(0, ACTS.search(text).start() - 80) :][:160])
    assert "\nganomaly: all is well" not in text
    return code, text


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images whose classes and files have such names; a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in ("good", f"bad{EVIL}"):
        (folder / name).mkdir()
        for i in range(12):
            pixels = random.integers(0, 256, (32, 32), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{EVIL}{i}.png")
    (folder / "good" / f"no image{EVIL}.png").write_bytes(b"text")
    return folder


SMALL = (
    "--config.train.steps=2",
    "--config.model.features=4",
    "--config.model.latent_size=4",
    "--config.mesh.devices=1",
)


def test_of_images(images, tmp_path, capfd):
    abnormal = f"--config.data.abnormal=bad{EVIL}"
    code, text = said(capfd, "check", images)
    assert code == 2 and r"bad\x1b]0;owned\x07" in text
    code, text = said(capfd, "check", images, abnormal)
    assert code == 3 and r"\nganomaly: all is well" in text
    code, text = said(capfd, "train", images, "--workdir", tmp_path / "run", abnormal, *SMALL)
    assert code == 0 and r"bad\x1b" in text
    files = [*(images / "good").iterdir()][-3:]
    said(capfd, "predict", "--workdir", tmp_path / "run", *files, images / "good" / f"no image{EVIL}.png")
    said(capfd, "predict", "--workdir", tmp_path / "run", images / EVIL)
    said(capfd, "train", images / EVIL, "--workdir", tmp_path / "run2")
    said(capfd, "train", images, "--workdir", tmp_path / EVIL, f"--config.data.abnormal={EVIL}")


def test_of_sensors(tmp_path, capfd):
    path = tmp_path / f"rows{EVIL}.csv"
    name = EVIL.replace("\n", "").replace("\r", "")
    rows = [f"{i % 7},{i % 5},word" for i in range(60)]
    path.write_text("\n".join([f"a{name},b{name},c{name}", *rows]) + "\n")
    code, text = said(capfd, "check", path)
    assert code in (0, 3) and r"c\x1b]0;owned\x07" in text
    path.write_text("\n".join([f"a{name},b{name},c{name}", "1,2,x7", "2,3,x8"]) + "\n")
    code, text = said(capfd, "train", path, "--workdir", tmp_path / "run")
    assert code == 2 and r"column 'c\x1b" in text and "holds text with digits" in text
