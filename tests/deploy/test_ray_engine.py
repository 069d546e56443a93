"""Scoring on Ray: the same rows as without it, whoever dies; parts, restarts, shards, refusals. One test starts Ray."""

import contextlib  # noqa: I001
import csv
import functools
import io
import os
import pickle
import shutil
import signal
import socket
import sys

import pytest
from PIL import Image
from tests.support import blobs

pa = pytest.importorskip("pyarrow", reason="scoring on Ray needs pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="scoring on Ray needs pyarrow")

from ganomaly_jax.cli import main  # noqa: E402
from ganomaly_jax.core import config  # noqa: E402
from ganomaly_jax.core.errors import DamagedError, UserError  # noqa: E402
from ganomaly_jax.data import pack  # noqa: E402
from ganomaly_jax.data.formats import array_record  # noqa: E402
from ganomaly_jax.deploy import ray_cluster, ray_engine, ray_inputs  # noqa: E402
from ganomaly_jax.scoring import scorer as scoring_scorer  # noqa: E402

COLUMNS = ["path", "label", "score", "p_value", "verdict", "reason"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 30 images, 10 of them anomalous, and two files that are none."""
    root = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate([*blobs(20, 5), *blobs(10, 6, anomalous=True)]):
        Image.fromarray(image[..., 0]).save(root / f"{i:03}.png")
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("no image")
    return root


@pytest.fixture(scope="module")
def encoded(pictures):
    return [path.read_bytes() for path in sorted(pictures.iterdir())]


@pytest.fixture(scope="module")
def expected(trained, pictures, tmp_path_factory):
    """The rows of predictions.csv without Ray."""
    out = tmp_path_factory.mktemp("local") / "rows.csv"
    assert main.main(["predict", "--workdir", str(trained[0]), "--out", str(out), str(pictures)]) == 3
    with out.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of(out):
    return [row for path in sorted(out.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def check_same(rows, expected):
    """As in predictions.csv, but for names."""
    assert len(rows) == len(expected)
    for row, want in zip(rows, expected, strict=True):
        assert (row["verdict"], row["reason"]) == (want["verdict"], want["reason"])
        for name in ("score", "p_value"):
            if want[name]:
                assert row[name] == pytest.approx(float(want[name]), rel=1e-4)
            else:
                assert row[name] is None


@pytest.fixture
def plain_environment(monkeypatch):
    """Workers compile as this process does; no other cluster is joined."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def test_a_killed_worker_loses_nothing(
    trained, pictures, encoded, expected, tmp_path, monkeypatch, plain_environment, capfd
):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ganomaly-jax[ray]'")
    pytest.importorskip("ray.data", reason="ray is not installed: pip install 'ganomaly-jax[ray]'")
    pq.write_table(pa.table({"image": encoded, "label": [0] * 20 + [1] * 10 + [None] * 2}), tmp_path / "s.parquet")
    sources = [str(pictures), str(tmp_path / "s.parquet")]
    killed, said, out = [], [], tmp_path / "out"
    original = ray_engine._scored

    def with_a_death(*arguments):
        for row in original(*arguments):
            if not killed:
                killed.append(row["worker"])
                os.kill(int(row["worker"].rpartition(":")[2]), signal.SIGKILL)
            yield row

    monkeypatch.setattr(ray_engine, "_scored", with_a_death)
    found = ray_engine.predict(trained[0], sources, out, workers=2, part_size=1, log=said.append)
    assert not ray.is_initialized()
    assert not capfd.readouterr().out
    assert len(found.workers) > 2, "the dead worker was not replaced"
    assert (found.parts, found.kept, sum(found.workers.values())) == (64, 0, 64)
    rows = rows_of(out)
    assert list(rows[0]) == COLUMNS
    assert [row["path"] for row in rows[:32]] == [row["path"] for row in expected]
    assert [row["path"] for row in rows[32:34]] == [f"{sources[1]}[0]", f"{sources[1]}[1]"]
    check_same(rows[:32], expected)
    check_same(rows[32:], expected)
    assert [row["label"] for row in rows] == [None] * 32 + [0] * 20 + [1] * 10 + [None] * 2
    assert sum(found.counts.values()) == 64 and found.counts["invalid"] == 4 and found.counts["anomalous"] >= 2


def scored_here(trained, part):
    return pq.read_table(io.BytesIO(ray_engine.score_part(trained[1], part, ""))).to_pylist()


def test_records_and_rows_are_scored_as_the_files_are(trained, pictures, encoded, expected, tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module", reason="array_record is not installed")
    writer = module.ArrayRecordWriter(str(tmp_path / "a.array_record-00000-of-00001"), "group_size:1")
    for image in encoded:
        writer.write(image)
    writer.close()
    names = [path.name for path in sorted(pictures.iterdir())]
    shutil.copytree(pictures, tmp_path / "rows", dirs_exist_ok=True)
    pq.write_table(pa.table({"path": names}), tmp_path / "rows" / "named.parquet", row_group_size=7)
    for source, kind in ((tmp_path, "array_record"), (tmp_path / "rows" / "named.parquet", "parquet")):
        if kind == "array_record":
            (tmp_path / "only").mkdir()
            shutil.move(tmp_path / "a.array_record-00000-of-00001", tmp_path / "only")
            source = tmp_path / "only"
        parts = ray_inputs.list_parts([str(source)], 12)
        assert [(part.kind, part.start, part.stop) for part in parts] == [(kind, 0, 12), (kind, 12, 24), (kind, 24, 32)]
        rows = [row for part in parts for row in scored_here(trained, part)]
        check_same(rows, expected)
    assert [row["path"] for row in rows] == names


def test_packed_shards_are_scored_as_the_files_are(trained, pictures, expected, tmp_path):
    """With the labels that they hold; a record that was altered is invalid, with all after it in the part."""
    pytest.importorskip("array_record", reason="array_record is not installed")
    (tmp_path / "set" / "good").mkdir(parents=True)
    (tmp_path / "set" / "bad").mkdir()
    for path in sorted(pictures.iterdir()):
        shutil.copy(path, tmp_path / "set" / ("bad" if "020" <= path.stem <= "029" else "good"))
    out = tmp_path / "packed" / "a.array_record"
    out.parent.mkdir()
    pack.pack(config.Data(source=str(tmp_path / "set"), height=16, width=16), out)
    parts = ray_inputs.list_parts([str(out.parent)], 12)
    assert [(part.kind, part.rows) for part in parts] == [("packed", 12), ("packed", 12), ("packed", 6)]
    rows = sorted((row for part in parts for row in scored_here(trained, part)), key=lambda row: row["path"][-7:])
    check_same(rows, [row for row in expected if row["verdict"] != "invalid"])
    assert [row["label"] for row in rows] == [0] * 20 + [1] * 10
    content = bytearray(out.read_bytes())
    content[content.index(scored_pixels(out, 20)) + 100] ^= 1
    out.write_bytes(content)
    reasons = [row["reason"] for row in scored_here(trained, parts[1])]
    assert all(reason.startswith("damaged shard: ") for reason in reasons), reasons


def scored_pixels(shard, index):
    return array_record.concatenate([array_record.open_shard(shard)], "it").images[index].tobytes()


def test_every_row_of_a_parquet_file_is_in_one_part(tmp_path):
    pq.write_table(pa.table({"image": [b"%d" % i for i in range(700)]}), tmp_path / "a.parquet", row_group_size=300)
    for size in (1, 100, 299, 301, 700, 5000):
        parts = ray_inputs.list_parts([str(tmp_path)], size)
        blocks = [block for part in parts for block in ray_inputs.blocks(part, "")]
        assert [item for block in blocks for item in block.images] == [b"%d" % i for i in range(700)]
        assert [name for block in blocks for name in block.names] == [f"{tmp_path}/a.parquet[{i}]" for i in range(700)]
        assert max(len(block.images) for block in blocks) <= ray_inputs.BLOCK


def test_a_damaged_shard_gives_invalid_rows_and_null_is_one(trained, encoded, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [None, *encoded[:20]]}), path, compression="none", use_dictionary=False)
    assert scored_here(trained, ray_inputs.list_parts([str(path)])[0])[0]["reason"] == "no image: null"
    raw = bytearray(path.read_bytes())
    raw[4:60] = b"\xff" * 56
    path.write_bytes(raw)
    rows = scored_here(trained, ray_inputs.list_parts([str(path)])[0])
    assert len(rows) == 21 and {row["verdict"] for row in rows} == {"invalid"}
    assert all(row["reason"].startswith("damaged shard: ") and row["score"] is None for row in rows)


def test_relative_names_are_below_the_folder_of_the_command(trained, pictures, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    part = ray_inputs.list_parts([pictures.name], 2)[0]
    monkeypatch.chdir("/")
    rows = pq.read_table(io.BytesIO(ray_engine.score_part(trained[1], part, str(pictures.parent)))).to_pylist()
    assert [row["path"] for row in rows] == [f"{pictures.name}/000.png", f"{pictures.name}/001.png"]
    assert "invalid" not in {row["verdict"] for row in rows}


def test_a_worker_tells_in_a_row_what_it_refuses(trained, pictures, tmp_path):
    part = ray_inputs.list_parts([str(pictures)])[0]
    batch = pa.table({"part": [0], "task": [pickle.dumps(part)]})
    detector = ray_engine._detector_hash(trained[0])
    for workdir, seal, version, why, code in (
        (trained[0], "other", ray_engine.__version__, "another detector", 2),
        (trained[0], detector, "0.0", "expected 0.0", 2),
        (tmp_path, detector, ray_engine.__version__, "is not a run's folder", 2),
    ):
        row = ray_engine.ScoringActor(str(workdir), seal, "", version)(batch).to_pylist()[0]
        assert why in row["error"] and socket.gethostname() in row["error"] and row["exit_code"] == code
    row = ray_engine.ScoringActor(str(trained[0]), detector, "", ray_engine.__version__)(batch).to_pylist()[0]
    assert not row["error"] and len(pq.read_table(io.BytesIO(row["parquet"]))) == 32


class FakeRay:
    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass


@pytest.mark.parametrize(("good", "said"), [({0, 2}, 2), (set(), 1)])
def test_a_part_that_kills_its_workers_is_given_up(monkeypatch, pictures, good, said):
    parts = ray_inputs.list_parts([str(pictures)], 10)

    def scored(ray, parts, wanted, *_):
        yield from ({"part": index, "error": "", "exit_code": 0} for index in wanted if index in good)
        raise FakeRay.exceptions.RayError("first line\nthe worker died")

    monkeypatch.setattr(ray_engine, "_scored", scored)
    lines, rows = [], []
    with pytest.raises(UserError, match=rf"^{4 - len(good)} parts .*failed 2 times: the worker died;"):
        rows += ray_engine._all_scored(FakeRay, parts, range(4), ("", "", ""), 0, lines.append)
    assert len(lines) == said


def test_the_error_of_a_worker_ends_the_run(monkeypatch, pictures):
    def refused(code):
        return lambda *_: iter([{"part": 0, "error": "it is damaged", "exit_code": code}])

    for code, kind in ((2, UserError), (5, DamagedError)):
        monkeypatch.setattr(ray_engine, "_scored", refused(code))
        with pytest.raises(kind, match="it is damaged"):
            list(ray_engine._all_scored(FakeRay, ray_inputs.list_parts([str(pictures)]), [0], ("", "", ""), 0, print))


@pytest.fixture
def without_a_cluster(monkeypatch):
    """`predict` up to where Ray would start; gives back what was to be scored."""
    ran = []

    def scored(ray, parts, missing, where, workers, log):
        ran.append(list(missing))
        scorer = scoring_scorer.load(where[0])
        for i in missing:
            yield {"part": i, "parquet": ray_engine.score_part(scorer, parts[i], where[2]), "worker": "here:1"}

    monkeypatch.setattr(ray_engine, "import_package", lambda name, _: pq if name == "pyarrow.parquet" else None)
    monkeypatch.setattr(ray_cluster, "connect", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(ray_engine, "_all_scored", scored)
    return ran


def test_parts_that_are_missing_or_cut_short_are_scored_again(
    trained, pictures, expected, tmp_path, without_a_cluster, monkeypatch, capsys
):
    monkeypatch.setattr(ray_engine, "predict", functools.partial(ray_engine.predict, part_size=3))
    out = tmp_path / "out"
    call = ["predict", str(pictures), "--workdir", str(trained[0]), "--out", str(out), "--engine", "ray"]
    assert main.main(call) == 3
    (out / "part-000003.parquet").unlink()
    (out / "part-000008.parquet").write_bytes((out / "part-000008.parquet").read_bytes()[:-9])
    before = (out / "part-000007.parquet").stat().st_mtime_ns
    assert main.main(call) == 3
    assert without_a_cluster == [[*range(11)], [3, 8]]
    first, kept, second = capsys.readouterr().out.splitlines()
    assert kept == "9 of 11 parts had already been scored"
    assert first == second and second.endswith(f"2 invalid; rows in 11 Parquet files in {out}")
    check_same(rows_of(out), expected)
    assert (out / "part-000007.parquet").stat().st_mtime_ns == before


def test_a_folder_of_other_results_is_refused(trained, pictures, tmp_path, without_a_cluster):
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(pictures, images)
    arguments = (str(trained[0]), [str(images)], str(out))
    assert ray_engine.predict(*arguments).kept == 0
    assert ray_engine.predict(*arguments).kept == 1 and len(without_a_cluster) == 1
    for change, why in (
        (lambda: ray_engine.predict(*arguments, part_size=5), "another part size"),
        (lambda: ray_engine.predict(str(trained[0]), [str(pictures)], str(out)), "another source"),
    ):
        with pytest.raises(UserError, match=why):
            change()
    (images / "000.png").rename(images / "zzz.png")
    with pytest.raises(UserError, match="another list of inputs"):
        ray_engine.predict(*arguments)
    shutil.copytree(trained[0] / "detector", tmp_path / "detector")
    (images / "zzz.png").rename(images / "000.png")
    (tmp_path / "detector" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="another detector"):
        ray_engine.predict(str(tmp_path / "detector"), *arguments[1:])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        ray_engine.predict(*arguments[:2], tmp_path / "mine")


def test_rows_that_are_missing_at_the_end_are_noticed(trained, pictures, tmp_path, without_a_cluster, monkeypatch):
    short = ray_inputs.list_parts([str(pictures)], 31)[0]
    given = [{"part": 0, "parquet": ray_engine.score_part(trained[1], short, ""), "worker": "here:1"}]
    for rows in (given, []):
        monkeypatch.setattr(ray_engine, "_all_scored", lambda *_, rows=rows: iter(rows))
        with pytest.raises(DamagedError, match=r"part-000000\.parquet is missing or does not have the 32 rows"):
            ray_engine.predict(trained[0], [str(pictures)], tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["IMAGES", "--engine", "ray", "--overwrite"], "--engine ray supports no --overwrite"),
        (["IMAGES", "--workers", "2"], "belong to --engine ray"),
        (["IMAGES", "--engine", "ray", "--out", "IMAGES/000.png"], "000.png is a file"),
        (["IMAGES", "--engine", "ray", "--out", "NEW", "--workers", "-1"], "--workers -1"),
        (["NEW/none", "--engine", "ray", "--out", "NEW", "--workdir", "NEW"], "does not exist"),
        (["EMPTY", "--engine", "ray", "--out", "NEW"], "nothing to score"),
        (["s3://bucket/a", "--engine", "ray", "--out", "NEW"], "expected a path that all machines see"),
        (["EMPTY/no.parquet", "--engine", "ray", "--out", "NEW"], "cannot be read as Parquet"),
    ],
)
def test_refusals_are_one_sentence(trained, pictures, tmp_path, words, why, monkeypatch, capsys):
    pytest.importorskip("ray.data", reason="ray is not installed: pip install 'ganomaly-jax[ray]'")
    (tmp_path / "empty").mkdir()
    places = {"IMAGES": pictures, "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty"}
    words = [functools.reduce(lambda word, key: word.replace(key, str(places[key])), places, word) for word in words]
    assert main.main(["predict", "--workdir", str(trained[0]), *words]) == 2
    printed = capsys.readouterr()
    assert why in printed.err and len(printed.err.splitlines()) == 1 and not printed.out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"jpeg": [b""]}, r"has the columns jpeg \(binary\): expected image"),
        ({"image": ["a.png"]}, r"image \(string\)"),
        ({"path": ["a.png"], "label": ["good"]}, r"label \(string\)"),
    ],
)
def test_other_columns_are_refused(tmp_path, table, why):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=why):
        ray_inputs.list_parts([str(tmp_path)])


def test_other_labels_and_mixed_folders_and_damage_are_refused(pictures, tmp_path):
    pq.write_table(pa.table({"path": ["a.png"], "label": [7]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.png has the label 7: expected 0 normal"):
        list(ray_inputs.blocks(ray_inputs.list_parts([str(tmp_path)])[0], ""))
    shutil.copy(pictures / "000.png", tmp_path)
    with pytest.raises(UserError, match="holds both images"):
        ray_inputs.list_parts([str(tmp_path)])
    pytest.importorskip("array_record", reason="array_record is not installed")
    (tmp_path / "b.array_record").write_bytes(b"x" * 99)
    with pytest.raises(UserError, match="cannot be read as ArrayRecord"):
        ray_inputs.list_parts([str(tmp_path / "b.array_record")])


def test_no_cluster_at_the_address_is_told_at_once(monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'ganomaly-jax[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        monkeypatch.setattr(ray_cluster, "_CONNECT_TIMEOUT_S", 1)
        with pytest.raises(UserError, match=r"no Ray cluster answered within 1 s; expected HOST:PORT"):
            ray_cluster.check_reachable(address)
    for given, why in ((address, "refused"), ("nonsense:port", "invalid literal"), ("ray://a:1", "expected HOST:PORT")):
        with pytest.raises(UserError, match=why):
            ray_cluster.check_reachable(given)


def test_without_ray_it_says_what_to_install(trained, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    call = ["predict", str(pictures), "--engine", "ray", "--workdir", str(trained[0]), "--out", str(tmp_path / "out")]
    assert main.main(call) == 2
    assert "pip install 'ganomaly-jax[ray]'" in capsys.readouterr().err
