"""Array files whose headers claim more than the file or the memory holds are refused before anything is read."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest

from ganomaly_jax.core import config, memory
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import sources
from ganomaly_jax.data.formats import arrays


def header(shape, kind="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def npz(path, members, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        sources.load(config.Data(source=str(path)))
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize("dimensions", [0, 9, 255])
def test_idx_dimensions_are_few(tmp_path, dimensions):
    path = tmp_path / "train-images.idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, dimensions]) + b"\xff" * 4 * dimensions)
    refused(path, f"header claims {dimensions} dimensions: expected 1 to 8")


def test_an_idx_header_does_not_promise_more_than_the_file(tmp_path):
    head = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**10, 2**10)
    (tmp_path / "train-images.idx3-ubyte").write_bytes(head)
    refused(tmp_path / "train-images.idx3-ubyte", "truncated or altered: its header claims 2147483648 x 1024 x 1024")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head))
    refused(tmp_path / "train-images-idx3-ubyte.gz", "truncated or altered")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            header((10**7, 32, 32)) + bytes(100),
            "10000000 x 32 x 32 values of 1 bytes, but there are 100 bytes",
        ),
        (header((2**40, 2**20)) + bytes(100), "truncated or altered"),
        (header((-1, -100)) + bytes(100), "truncated or altered"),
        (header((2,) * 60) + bytes(100), "truncated or altered"),
        (header((2**60,), "<U0"), "expected numbers or text"),
        (header((1,), "|O") + bytes(8), "expected numbers or text"),
        (b"\x93NUMPY\x07\x00" + bytes(100), "format version 7.0"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100), "cannot be read"),
    ],
)
def test_a_header_does_not_promise_more_than_its_file(tmp_path, content, match):
    refused(npz(tmp_path / "a.npz", {"images.npy": content}), match)
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path / "a.npy", match)


def test_members_are_few_and_add_up(tmp_path, monkeypatch):
    one = io.BytesIO()
    np.save(one, np.zeros(1))
    many = npz(tmp_path / "many.npz", {f"m{i}.npy": one.getvalue() for i in range(1001)}, zipfile.ZIP_STORED)
    refused(many, "1001 members: expected 1000")
    refused(npz(tmp_path / "lzma.npz", {"images.npy": one.getvalue()}, zipfile.ZIP_LZMA), "NumPy does not write")
    fair = tmp_path / "fair.npz"
    np.savez(fair, images=np.zeros((50, 16, 16), np.uint8), more=np.zeros((50, 16, 16), np.uint8))
    assert len(sources.load(config.Data(source=str(fair))).images) == 50
    monkeypatch.setattr(memory, "free_memory", lambda: 50 * 16 * 16 + 1)  # one of them would fit
    refused(fair, "MiB of memory are free")
    monkeypatch.setattr(arrays, "MAX_BYTES", 50 * 16 * 16 + 1)
    refused(fair, "GiB at most")


def test_what_expands_a_hundred_times_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_SUSPECT_BYTES", 2**20)
    shape = (2048, 32, 32)
    bomb = npz(tmp_path / "bomb.npz", {"images.npy": header(shape) + bytes(2**21)})
    refused(bomb, "would expand from 0 to 2 MiB, by more than a factor of 100")
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, *shape) + bytes(2**21)))
    refused(packed, "by more than a factor of 100")
    np.savez(tmp_path / "plain.npz", images=np.zeros(shape, np.uint8))
    assert sources.load(config.Data(source=str(tmp_path / "plain.npz"))).images.shape == (*shape, 1)
