"""npz and npy files that NumPy and zipfile answer with exceptions of their own: a sentence."""

import io
import zipfile

import numpy as np
import pytest

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import sources

IMAGES = np.zeros((3, 4, 4), np.uint8)


def npy(array):
    kept = io.BytesIO()
    np.save(kept, array)
    return kept.getvalue()


def archived(members, change=None):
    kept = io.BytesIO()
    with zipfile.ZipFile(kept, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = bytearray(kept.getvalue())
    if change is not None:
        change(content, content.index(b"PK\x01\x02"))
    return bytes(content)


def encrypted(content, central):
    content[6] |= 1
    content[central + 8] |= 1


def newer(content, central):
    content[central + 6] = 255


def words(code):
    return npy(np.array([code] * 3, np.uint32).view("U1"))


WHOLE = npy(IMAGES)
FILES = {
    "a header that is no Python.npy": WHOLE.replace(b"{'descr'", b"{('descr"),
    "a member with such a header.npz": archived({"images.npy": WHOLE.replace(b"{'descr'", b"{('descr")}),
    "an encrypted member.npz": archived({"images.npy": WHOLE}, encrypted),
    "a newer version of zip.npz": archived({"images.npy": WHOLE}, newer),
    "words that are no text.npz": archived({"images.npy": WHOLE, "labels.npy": words(2**31)}),
    "members that are no arrays.npz": archived({"images": b"GIF89a"}),
    "one name for all classes.npz": archived(
        {"images.npy": WHOLE, "labels.npy": npy(np.zeros(3, int)), "classes.npy": npy(np.array("normal"))}
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_in_a_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    with pytest.raises(UserError) as caught:
        sources.load(config.Data(source=str(tmp_path / name)))
    assert str(caught.value).isprintable() and name in str(caught.value)


def test_members_that_are_no_arrays_are_left_out(tmp_path):
    (tmp_path / "x.npz").write_bytes(archived({"images.npy": WHOLE, "labels": b"read me"}))
    assert sources.load(config.Data(source=str(tmp_path / "x.npz"))).images.shape == (3, 32, 32, 1)


def test_one_name_is_the_name_of_one_column(tmp_path):
    rows = npy(np.arange(8.0).reshape(8, 1))
    (tmp_path / "x.npz").write_bytes(archived({"rows.npy": rows, "columns.npy": npy(np.array("flow"))}))
    assert sources.load(config.Data(source=str(tmp_path / "x.npz"))).feature_names == ("flow",)
