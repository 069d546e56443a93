"""Data larger than memory: packed images, and trainings that read them meanwhile to the same bits."""

import dataclasses  # noqa: I001
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.support import blobs, tiny_config

from ganomaly_jax.cli import main
from ganomaly_jax.core import config, memory, validation
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.data import datasets, lazy, pack, sources
from ganomaly_jax.data.formats import array_record
from ganomaly_jax.evaluation import evaluate
from ganomaly_jax.runs import checkpoint, resolution
from ganomaly_jax.training import input_pipeline, trainer
from ganomaly_jax.training.training_run import TrainingRun

pytest.importorskip("array_record", reason="array_record is not installed")
ROOT = Path(__file__).resolve().parents[2]


def quiet(line):
    """Takes the lines of a training."""


def folder(path, normal=60, bad=6):
    """Images as PNG files, good/ and bad/."""
    for name, count, seed in (("good", normal, 0), ("bad", bad, 1)):
        (path / name).mkdir(parents=True)
        for i, image in enumerate(blobs(count, seed, anomalous=name == "bad")):
            Image.fromarray(image[..., 0]).save(path / name / f"{i:03}.png")
    return path


def small(source, **values):
    return config.Data(source=str(source), height=16, width=16, **values)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(folder, shard): the same images as files and packed."""
    root = tmp_path_factory.mktemp("packed")
    images = folder(root / "images")
    pack.pack(small(images), root / "set.array_record")
    return images, root / "set.array_record"


@pytest.fixture(scope="module")
def have_grain():
    pytest.importorskip("grain", reason="grain is not installed")


def test_a_packed_set_is_the_folder(packed):
    images, shard = packed
    wanted, found = sources.load(small(images)), sources.load(small(shard, stream="always"))
    assert isinstance(found.images, lazy.LazyImages) and isinstance(wanted.images, np.ndarray)
    np.testing.assert_array_equal(found.images[:], wanted.images)
    np.testing.assert_array_equal(found.images[[3, -1, 3]], wanted.images[[3, -1, 3]])
    np.testing.assert_array_equal(found.images[5], wanted.images[5])
    np.testing.assert_array_equal(found.images.take(np.array([7, 2]))[1], wanted.images[2])
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert (found.classes, found.normal, found.paths) == (wanted.classes, wanted.normal, wanted.paths)
    assert (found.low, found.high, found.parts) == (wanted.low, wanted.high, wanted.parts)
    assert found.digest == datasets.content_hash(wanted)
    in_memory = sources.load(small(shard, stream="never"))
    assert isinstance(in_memory.images, np.ndarray)
    np.testing.assert_array_equal(in_memory.images, wanted.images)
    with pytest.raises(IndexError):
        found.images[len(wanted.images)]
    with pytest.raises(TypeError, match="not in memory"):
        np.asarray(found.images)


@pytest.mark.parametrize("dtype", ["grey and colour", "uint16", "8 and 16 bit"])
def test_types_and_channels_are_those_of_the_folder(tmp_path, dtype):
    random = np.random.default_rng(0)
    for i in range(4):
        array = random.integers(0, 256, (20, 24), np.uint8)
        if dtype == "grey and colour" and i == 2:
            array = random.integers(0, 256, (20, 24, 3), np.uint8)
        elif dtype == "uint16" or (dtype == "8 and 16 bit" and i == 3):
            array = random.integers(0, 65536, (20, 24)).astype(np.uint16)
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    out = tmp_path / "out" / "x.array_record"
    made = pack.pack(small(tmp_path), out)
    wanted, found = sources.load(small(tmp_path)), sources.load(small(out))
    assert made.dtype == str(wanted.images.dtype) and made.shape == wanted.images.shape[1:] and not made.problems
    np.testing.assert_array_equal(found.images[:], wanted.images)
    assert (found.low, found.high) == (wanted.low, wanted.high)


def test_the_command_names_what_it_leaves_out(tmp_path, capsys):
    images = folder(tmp_path / "images", 5, 2)
    (images / "good" / "002.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    out = tmp_path / "x.array_record"
    code = main.main(["pack", str(images), str(out), "--config.data.height=16", "--config.data.width=16"])
    assert code == 3
    said = capsys.readouterr().out
    assert "6 images of 16 x 16 x 1 uint8" in said and "left out" in said and "002.png" in said
    found = sources.load(small(out))
    assert len(found.images) == 6 and found.problems[0][0].endswith("002.png")
    assert np.bincount(found.labels).tolist() == [4, 2]
    (images / "good" / "002.png").unlink()
    again = ["pack", str(images), str(out), "--overwrite", "--config.data.height=16", "--config.data.width=16"]
    assert main.main(again) == 0
    assert not sources.load(small(out)).problems
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", out.name, out.name + ".json"]


def test_arrays_and_folders_of_shards(tmp_path):
    for i in range(2):
        np.savez(
            tmp_path / "x.npz", images=blobs(5, i), labels=np.array(["b", "a"] if i else ["a", "c"])[[0, 1, 0, 1, 0]]
        )
        pack.pack(small(tmp_path / "x.npz"), tmp_path / "set" / f"{i}.array_record")
    found = sources.read(small(tmp_path / "set", stream="always"))
    assert found.classes == ("a", "c", "b")
    assert [found.classes[i] for i in found.labels] == ["a", "c", "a", "c", "a", "b", "a", "b", "a", "b"]
    np.testing.assert_array_equal(found.images[[9, 0, 4, 5]], np.concatenate([blobs(5, 0), blobs(5, 1)])[[9, 0, 4, 5]])
    assert datasets.content_hash(found) == datasets.content_hash(sources.read(small(tmp_path / "set", stream="never")))
    np.savez(tmp_path / "x.npz", images=blobs(5, 0).astype(np.float32), labels=np.arange(5))
    pack.pack(small(tmp_path / "x.npz"), tmp_path / "set" / "2.array_record")
    with pytest.raises(UserError, match=r"dtype is uint8 in 0\.array_record and float32 in 2\.array_record"):
        sources.read(small(tmp_path / "set"))


def copy(shard, to):
    to.mkdir()
    for path in (shard, array_record.metadata_path(shard)):
        (to / path.name).write_bytes(path.read_bytes())
    return to / shard.name


def test_damage_is_noticed(packed, tmp_path):
    alone = copy(packed[1], tmp_path / "a")
    array_record.metadata_path(alone).unlink()
    with pytest.raises(UserError, match=r"has no set\.array_record\.json beside it"):
        sources.load(small(alone))
    short = copy(packed[1], tmp_path / "b")
    os.truncate(short, short.stat().st_size // 2)
    with pytest.raises(DamagedError, match="cut short"):
        sources.load(small(short))
    for i, change in enumerate((lambda text: text.replace('"labels":[1', '"labels":[0'), lambda text: text[:-9])):
        altered = copy(packed[1], tmp_path / f"c{i}")
        note = array_record.metadata_path(altered)
        changed = change(note.read_text())
        assert changed != note.read_text()
        note.write_text(changed)
        with pytest.raises(DamagedError, match="was altered or cut short"):
            sources.load(small(altered))
    flipped = copy(packed[1], tmp_path / "d")
    content = bytearray(flipped.read_bytes())
    content[content.index(sources.load(small(packed[1])).images[7].tobytes()) + 100] ^= 1
    flipped.write_bytes(content)
    with pytest.raises(DamagedError, match=r"set\.array_record is damaged"):
        sources.load(small(flipped, stream="never"))
    other = copy(packed[1], tmp_path / "e")
    said = json.loads(array_record.metadata_path(other).read_text())
    del said["sha256"]
    said["checks"][3] ^= 1
    array_record.metadata_path(other).write_text(array_record.encode_metadata(said))
    dataset = sources.load(small(other, stream="always"))
    dataset.images[2]
    with pytest.raises(DamagedError, match="record 3 was altered"):
        dataset.images[2:5]
    assert main.main(["train", str(short), "--workdir", str(tmp_path / "run")]) == 5


def test_what_cannot_be_packed_or_read(packed, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"packed at 16x16x1, expected 32x16x1: .*--config\.data\.height=32"):
        sources.load(config.Data(source=str(packed[1]), height=32))
    with pytest.raises(UserError, match=r"expected a name that ends in \.array_record"):
        pack.pack(small(packed[0]), tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"does not exist; expected a folder"):
        sources.load(small(tmp_path / "x.array_record"))
    with pytest.raises(UserError, match="does not exist"):
        pack.pack(small(tmp_path / "nowhere"), tmp_path / "x.array_record")
    settings = tiny_config()
    settings.data.stream = "perhaps"
    with pytest.raises(UserError, match=r"data.stream='perhaps': expected 'auto', 'always' or 'never'"):
        validation.check(settings)
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(UserError, match=r"pip install 'ganomaly-jax\[data\]'"):
        pack.pack(small(packed[0]), tmp_path / "x.array_record")


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(packed, tmp_path):
    shard = copy(packed[1], tmp_path / "there")
    before = {path: path.read_bytes() for path in shard.parent.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"set\.array_record cannot be written: .*free disk space"):
            pack.pack(small(packed[0]), shard)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in shard.parent.iterdir()} == before


def settings_for(source, stream, **values):
    settings = tiny_config(**({"epochs": 2, "save_every": 5} | values))
    settings.data.source, settings.data.stream = str(source), stream
    return settings


def final(workdir):
    return checkpoint.restore(workdir / "checkpoints", None)[1]


def assert_same_bits(a, b):
    chex.assert_trees_all_equal(a, b, strict=True)


@pytest.fixture(scope="module")
def in_memory(packed, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("memory")
    scorer = trainer.train(settings_for(packed[0], "never"), workdir, log=quiet)
    evaluate.evaluate(workdir)
    return workdir, scorer


def test_a_streamed_training_gives_the_same_bits(packed, in_memory, have_grain, tmp_path):
    lines = []
    scorer = trainer.train(settings_for(packed[1], "always"), tmp_path, log=lines.append)
    assert any("read during training" in line for line in lines)
    assert_same_bits(final(tmp_path), final(in_memory[0]))
    assert scorer.threshold == in_memory[1].threshold
    evaluate.evaluate(tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == (in_memory[0] / "predictions.csv").read_text()


def test_it_goes_on_in_the_middle_on_either_way(packed, in_memory, have_grain, tmp_path, monkeypatch):
    monkeypatch.setattr(input_pipeline, "BUFFER_BYTES", 3 * 8 * 256)  # three steps a call
    total = resolution.total_steps(tiny_config(epochs=2), 44)
    for steps, stream in ((4, "always"), (7, "never"), (total, "always")):
        source = packed[1] if stream == "always" else packed[0]
        trainer.train(settings_for(source, stream, steps=steps), tmp_path, log=quiet)
    assert_same_bits(final(tmp_path), final(in_memory[0]))


def test_several_devices_get_the_images_of_their_places(packed, have_grain, tmp_path):
    found = {}
    for stream in ("never", "always"):
        settings = settings_for(packed[1], stream, steps=3)
        settings.mesh.devices = 4
        trainer.train(settings, tmp_path / stream, log=quiet)
        found[stream] = final(tmp_path / stream)
    assert_same_bits(found["always"], found["never"])


def test_a_process_reads_the_records_of_its_places_only(packed):
    this = resolution.resolve(settings_for(packed[1], "always"))
    images, read = this.dataset.images, []
    watched = dataclasses.replace(images, read=lambda indices: read.append(indices) or images.read(indices))
    this = dataclasses.replace(this, dataset=dataclasses.replace(this.dataset, images=watched))
    run = TrainingRun(this, Path("nowhere"))
    half = this.config.train.batch_size // 2
    taken = []
    for places in (np.arange(half), np.arange(half, 2 * half)):
        read.clear()
        step = input_pipeline.reader(run, places)
        for k in range(run.total_steps):
            wanted = this.split.train[run.index(k, 1)[0, places]]
            np.testing.assert_array_equal(step(k), images[wanted])
        taken.append(set(np.concatenate(read).tolist()))
    # The places are dealt out once; those that fill up the last row may lie on both sides.
    filled = -len(this.split.train) % (2 * half)
    assert len(taken[0] & taken[1]) <= filled
    assert max(map(len, taken)) <= len(this.split.train) // 2 + half


def test_what_reading_meets_ends_the_training(packed, have_grain, tmp_path):
    shard = copy(packed[1], tmp_path / "set")
    said = json.loads(array_record.metadata_path(shard).read_text())
    del said["sha256"]
    said["checks"] = [0] * len(said["checks"])
    array_record.metadata_path(shard).write_text(array_record.encode_metadata(said))
    with pytest.raises(DamagedError, match="was altered"):
        trainer.train(settings_for(shard, "always"), tmp_path / "run", log=quiet)


def test_without_grain_it_says_so(packed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"requires grain .*ganomaly-jax\[data\].*--config\.data\.stream=never"):
        trainer.train(settings_for(packed[1], "always"), tmp_path, log=quiet)


def test_auto_looks_at_the_free_memory(packed, monkeypatch):
    size = sources.load(small(packed[1])).images.nbytes
    monkeypatch.setattr(memory, "free_memory", lambda: int(size / lazy.SHARE) - 1)
    assert isinstance(sources.load(small(packed[1])).images, lazy.LazyImages)
    monkeypatch.setattr(memory, "free_memory", lambda: int(size / lazy.SHARE) + 1)
    assert isinstance(sources.load(small(packed[1])).images, np.ndarray)


def test_several_processes_read_a_small_set_on_demand_too(packed):
    """Each what it needs, once, and keeps it on its devices."""
    settings = small(packed[1], stream="never")
    shared, whole = sources.load(settings, shared=True), sources.load(settings)
    assert isinstance(shared.images, lazy.LazyImages) and shared.images.keep
    np.testing.assert_array_equal(shared.images[:], whole.images)
    assert datasets.content_hash(shared) == datasets.content_hash(whole)


@pytest.mark.parametrize(
    ("names", "none"),
    [
        (("memory.max", "memory.current", "inactive_file"), "max"),
        (("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), "9223372036854771712"),
    ],
)
def test_the_free_memory_of_a_group_is_that_of_the_narrowest(names, none, tmp_path):
    """As containers see them, of both versions; cached files do not count, a limit of nothing is none."""
    own = tmp_path / "job" / "task"
    own.mkdir(parents=True)
    for group, limit in ((own, none), (own.parent, "1000"), (tmp_path, "5000")):
        (group / names[0]).write_text(limit + "\n")
        (group / names[1]).write_text("700\n")
        (group / "memory.stat").write_text(f"cache 4\n{names[2]} 300\n")
    assert list(memory._free_in_limited_groups(tmp_path, "/job/task", names)) == [600, 4600]
    assert list(memory._free_in_limited_groups(tmp_path, "/elsewhere", names)) == [4600]


BOUNDED = """
import resource, sys
import numpy as np
from pathlib import Path
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import lazy, sources
from ganomaly_jax.runs import resolution
from ganomaly_jax.training import input_pipeline
from ganomaly_jax.training.training_run import TrainingRun
settings = config.Config()
settings.data.source, settings.data.stream = sys.argv[1], sys.argv[2]
settings.train.epochs, settings.train.batch_size = 1, 4
this = sources.load(config.Data(source=sys.argv[3], stream="always")).images[:]  # everything imported, threads begun
import grain
free = 400 * 2**20
begun = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (begun + free, -1))
try:
    this = resolution.resolve(settings)
    assert isinstance(this.dataset.images, lazy.LazyImages), "it takes too much for a quarter"
    assert this.dataset.images.nbytes >= 3 * free // 2, this.dataset.images.nbytes
    run = TrainingRun(this, Path("nowhere"))
    total = 0
    with input_pipeline.ahead(input_pipeline.reader(run, np.arange(4)), 0, run.total_steps, 8) as batches:
        for batch in batches:
            total += batch.size
    assert total == run.total_steps * 4 * 2**18
    print("read", total, flush=True)
except UserError as error:
    assert "Unable to allocate" in str(error)
    print("out of memory", flush=True)
import os
os._exit(0)
"""


def test_memory_stays_below_a_limit_that_the_set_exceeds(have_grain, tmp_path):
    """A whole epoch under `ulimit -v`, the set 1.5 times what is left: read on demand it goes through."""
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 4), np.uint8)
    count = 2400
    held = np.broadcast_to(image, (count, *image.shape))
    wanted = datasets.from_arrays(held, np.zeros(count, np.int64), name="large")
    shard = tmp_path / "large.array_record"
    with array_record.writer(shard, shard) as write:
        checks = [write(one) for one in held]
    note = pack._note(wanted, checks, shard.stat().st_size, config.Data()) | {"data_hash": "0" * 64}
    array_record.metadata_path(shard).write_text(array_record.encode_metadata(note))
    pack.pack(small("generated"), tmp_path / "first.array_record")
    for stream, said in (("auto", "read"), ("never", "out of memory")):
        call = [sys.executable, "-W", "ignore", "-c", BOUNDED, str(shard), stream, str(tmp_path / "first.array_record")]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "1"}
        ran = subprocess.run(call, capture_output=True, text=True, check=False, env=environment, timeout=120)
        assert ran.returncode == 0 and ran.stdout.startswith(said), ran.stdout + ran.stderr[-2000:]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("labels", [7]), ("labels", None), ("classes", [1]), ("shape", [10**6, 10**6, 1]), ("shape", 3)],
        *[("dtype", "O8"), ("low", "0"), ("parts", [5]), ("checks", []), ("paths", [[]]), ("problems", ["x"])],
        *[("bytes", None), ("normal", 1.5)],
    ],
)
def test_metadata_with_a_right_checksum_that_make_no_sense_are_refused(packed, tmp_path, key, value):
    """A checksum says that they are as written, not who wrote them; nothing of the declared size is allocated."""
    strange = copy(packed[1], tmp_path / "a")
    note = array_record.metadata_path(strange)
    said = json.loads(note.read_text())
    del said["sha256"]
    n = len(said["labels"])
    said[key] = value * n if isinstance(value, list) and len(value) == 1 and key != "classes" else value
    note.write_text(array_record.encode_metadata(said))
    named = "shape" if key == "bytes" else key
    with pytest.raises(DamagedError, match=f"not written by `ganomaly pack`: unexpected value of {named}"):
        sources.load(small(strange))


@settings(max_examples=15)
@given(
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.tuples(st.integers(1, 9), st.sampled_from([16, 32]), st.sampled_from([16, 32]), st.sampled_from([1, 3])),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_what_is_packed_is_what_was_given(dtype, shape, seed, labelled):
    """Pixels to the bit, labels, range and hash, whatever the type, the size and the number."""
    random = np.random.default_rng(seed)
    if dtype == np.float32:
        images = random.integers(0, 2**32, shape, np.uint32).view(np.float32)
        images = np.where(np.isfinite(images), images, np.float32(0))
    else:
        images = random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    held = {"images": images} | ({"labels": random.permutation(len(images)) % 2} if labelled else {})
    if labelled:
        held["labels"][0] = 0
    with tempfile.TemporaryDirectory() as folder:
        given_file, out = Path(folder, "x.npz"), Path(folder, "x.array_record")
        np.savez(given_file, **held)
        asked = {"height": shape[1], "width": shape[2]}
        pack.pack(config.Data(source=str(given_file), **asked), out)
        whole = sources.load(config.Data(source=str(given_file), **asked))
        for stream in ("never", "always"):
            found = sources.load(config.Data(source=str(out), stream=stream))
            np.testing.assert_array_equal(found.images[:], images)
            assert found.images.dtype == dtype
            np.testing.assert_array_equal(found.labels, whole.labels)
            assert (found.classes, found.normal, found.low, found.high) == (
                *(whole.classes, whole.normal, whole.low, whole.high),
            )
            assert datasets.content_hash(found) == datasets.content_hash(whole)
