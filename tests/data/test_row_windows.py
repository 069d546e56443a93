"""Rows of sensors: tables, windows, splits in time, and the very same training, scorer and export."""

import csv
import dataclasses
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import ganomaly_jax as gj
from ganomaly_jax.cli import main
from ganomaly_jax.core import config, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.data.rows import folders as row_folders
from ganomaly_jax.data.rows import splits as row_splits
from ganomaly_jax.data.rows import tables
from ganomaly_jax.data.rows import windows as row_windows
from ganomaly_jax.deploy import export, export_runtime
from ganomaly_jax.evaluation import evaluate
from ganomaly_jax.model import ganomaly, row_layers
from ganomaly_jax.runs import resolution
from ganomaly_jax.scoring import sensors
from ganomaly_jax.scoring.recalibration import recalibrate
from ganomaly_jax.streaming import reference
from ganomaly_jax.training import data_check
from tests.support import assert_scores_close

COLUMNS = ("pressure", "flow", "level", "temperature")


def plant(n, seed, broken=False):
    """[n, 4] sensors that follow two hidden waves; where it is broken, the level swings the other way and too far."""
    random = np.random.default_rng(seed)
    t = np.arange(n) + random.uniform(0, 100)
    one, two = np.sin(t / 7), np.cos(t / 11)
    level = one - two if not broken else 3 * (two - one)
    values = np.stack([one, two, level, one + two], axis=1) + random.normal(0, 0.1, (n, 4))
    return 50 + values * [1, 10, 0.1, 5]


def rows_config(window=0, **train_values):
    settings = config.Config()
    settings.data.window = window
    settings.data.columns = ",".join(COLUMNS)
    settings.model.latent_size, settings.model.features = 2, 8
    settings.mesh.devices = 1
    settings.train.batch_size, settings.train.picture_every = 16, 0
    settings.optimizer.learning_rate = 4e-3
    settings.evaluate.score = "pixel"
    for name, value in train_values.items():
        setattr(settings.train, name, value)
    return settings


def quiet(line):
    pass


@pytest.fixture(scope="module")
def labelled():
    """(rows [900, 4], labels): 700 normal, then 200 broken."""
    return np.concatenate([plant(700, 0), plant(200, 1, broken=True)]), np.repeat([0, 1], [700, 200])


@pytest.fixture(scope="module", params=[0, 8], ids=["rows", "windows"])
def trained(request, labelled, tmp_path_factory):
    """(workdir, scorer) of a finished run; look, do not touch."""
    workdir = tmp_path_factory.mktemp("rows")
    return workdir, gj.train(rows_config(request.param, steps=300), workdir, labelled, log=quiet)


def write(path, values, names=COLUMNS, labels=None, time=False):
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*(["time"] if time else []), *names, *([] if labels is None else ["label"])])
        for i, row in enumerate(values):
            cells = ["" if np.isnan(v) else repr(float(v)) for v in row]
            lines.writerow([*([str(i)] if time else []), *cells, *([] if labels is None else [labels[i]])])
    return path


def dataset_of(*recordings, window=0, stride=1, labels=None):
    settings = config.Data(window=window, stride=stride)
    marks = np.repeat(np.arange(len(recordings)), [len(one) for one in recordings])
    return row_windows.from_rows(np.concatenate(recordings), labels, segments=marks, settings=settings)


# Windows and splits


def test_windows_never_cross_the_end_of_a_recording():
    first, second = np.arange(20.0)[:, None], 100 + np.arange(9.0)[:, None]
    made = dataset_of(first, second, window=4, stride=3)
    assert made.images.shape == (6 + 2, 4, 1) and made.images.dtype == np.float32
    assert (np.diff(made.images[..., 0], axis=1) == 1).all()
    assert made.images[:, 0, 0].tolist() == [0, 3, 6, 9, 12, 15, 100, 103]
    # The last row of a window, counted from 1.
    assert made.paths[0].endswith(":4") and made.paths[-1].endswith(":7")


def test_a_window_with_an_anomalous_row_is_anomalous():
    labels = ["normal"] * 10 + ["leak"] * 2 + ["normal"] * 8
    made = dataset_of(np.zeros((20, 1)), window=4, labels=labels)
    anomalous = np.array([made.classes[i] for i in made.labels]) == "leak"
    assert np.flatnonzero(anomalous).tolist() == [7, 8, 9, 10, 11]
    assert made.normal == {"normal"}


@pytest.mark.parametrize(("window", "stride"), [(0, 1), (6, 1), (6, 4)])
def test_no_window_of_one_part_shares_a_row_with_another(window, stride):
    labels = np.zeros(400, int)
    labels[150:160] = 1
    made = dataset_of(np.zeros((300, 2)), np.zeros((100, 2)), window=window, stride=stride, labels=labels)
    parts = row_splits.split(made, config.Data(test=0.2, calibration=0.2))
    used = {}
    for name in ("train", "calibration", "test"):
        spans = made.layout.spans[getattr(parts, name)]
        assert len(spans) > 5, name
        used[name] = {(k, i) for k, first, last in spans.tolist() for i in range(first, last)}
    gap = window
    for one, other in (("train", "calibration"), ("train", "test"), ("calibration", "test")):
        near = {(k, i + d) for k, i in used[one] for d in range(-gap, gap + 1)}
        assert not near & used[other], (one, other)
    # In time: what is trained on comes first.
    assert max(parts.train) < min(parts.calibration) < max(parts.test)
    assert not made.labels[parts.train].any() and parts.labels.sum() == made.labels.sum()


def test_the_parts_that_a_source_has_are_kept():
    settings = config.Data(window=4)
    made = row_windows.from_rows(np.zeros((60, 2)), parts=np.repeat([0, 1], [40, 20]), settings=settings)
    parts = row_splits.split(made, settings)
    assert (made.layout.spans[parts.test, 0] == 1).all() and (made.layout.spans[parts.train, 0] == 0).all()


def test_windows_that_are_too_many_are_read_on_demand():
    settings = config.Data(window=8)
    values = plant(100, 0)
    held = row_windows.from_rows(values, settings=settings)
    lazily = row_windows.from_rows(values, settings=dataclasses.replace(settings, stream="always"))
    np.testing.assert_array_equal(lazily.images[5:9], held.images[5:9])
    assert datasets.content_hash(lazily) == datasets.content_hash(held)


# Scaling


def test_scaling_is_of_training_rows_alone_and_keeps_far_values_far():
    values = plant(500, 0)
    values[:, 3] = 7.5  # constant
    values[450:] += 1000  # of the test part
    settings = rows_config()
    this = resolution.resolve(settings, row_windows.from_rows(values, settings=settings.data))
    low, high = (np.array(side) for side in this.pixels[1:])
    trained_on = values[this.split.train]
    quartiles = np.quantile(trained_on, [0.25, 0.75], axis=0)
    np.testing.assert_allclose((low + high) / 2, np.median(trained_on, axis=0), rtol=1e-5)
    np.testing.assert_allclose((high - low)[:3] / 2, ((quartiles[1] - quartiles[0]) / 1.349)[:3], rtol=1e-3)
    assert (low[3], high[3]) == (6.5, 8.5) and any("temperature" in note for note in this.notes)
    x = np.asarray(preprocess.to_unit(this.dataset.images, *this.pixels[1:]))
    assert abs(x[this.split.train]).max() < 5 and (x[450:, 0] == preprocess.SENSOR_LIMIT).all()
    far = np.asarray(preprocess.to_unit(np.array([[low[0], 0, 0, 0]], np.float32), tuple(low), tuple(high)))
    np.testing.assert_allclose(far[0, 0], -1, rtol=1e-4)


# Learning


def test_it_learns_and_not_from_shuffled_labels(trained, labelled):
    workdir, _ = trained
    found = evaluate.evaluate(workdir, arrays=labelled)
    values = found.metrics
    assert values["auroc"] > 0.9, values["auroc"]
    assert (found.folder / "report.html").exists() and (found.folder / "pictures" / "examples.png").exists()
    x, labels = labelled
    shuffled = np.random.default_rng(0).permutation(labels)
    if values["items"] == "windows":  # labels of rows, shuffled, would make every window anomalous
        shuffled = np.repeat(np.random.default_rng(0).permutation(np.arange(30) % 2), 30)
    assert 0.25 < evaluate.evaluate(workdir, arrays=(x, shuffled), overwrite=True).metrics["auroc"] < 0.75


def test_a_stored_detector_is_the_same(trained, labelled):
    workdir, scorer = trained
    loaded = gj.load(workdir)
    x = labelled[0][-40:]
    assert loaded.feature_names == COLUMNS and loaded.input_shape == scorer.input_shape
    np.testing.assert_array_equal(loaded(x), scorer(x))
    alone = [scorer(window[None])[0] for window in scorer.as_input(x)[:3]]
    assert_scores_close(scorer, scorer.as_input(x)[:3], alone, scorer(x)[:3])
    fn, variables = scorer.function()
    assert_scores_close(scorer, scorer.as_input(x), jax.jit(fn)(variables, scorer.as_input(x)), scorer(x))


def test_an_export_gives_the_same_scores(trained, labelled, tmp_path):
    _, scorer = trained
    manifest = export.export(scorer, tmp_path / "out")
    assert manifest["input"]["columns"] == list(COLUMNS) and len(manifest["input"]["low"]) == 4
    call, _ = export_runtime.load(tmp_path / "out")
    x = scorer.as_input(labelled[0][-50:])
    assert_scores_close(scorer, x, call(x)["score"], scorer(x))


@pytest.mark.parametrize("window", [0, 8])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(labelled, tmp_path, window):
    whole = gj.train(rows_config(window, steps=12), tmp_path / "whole", labelled, log=quiet)
    gj.train(rows_config(window, steps=5), tmp_path / "parts", labelled, log=quiet)
    parts = gj.train(rows_config(window, steps=12), tmp_path / "parts", labelled, log=quiet)
    x = labelled[0][-30:]
    np.testing.assert_array_equal(parts(x), whole(x))


def test_two_devices_compute_what_one_does(labelled, tmp_path):
    found = []
    for devices in (1, 2):
        settings = rows_config(8, steps=6)
        settings.mesh.devices = devices
        found.append(gj.train(settings, tmp_path / str(devices), labelled, log=quiet)(labelled[0][-30:]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


@pytest.mark.parametrize("window", [0, 20])
def test_step_and_score_are_lowered_for_gpus_and_tpus(window):
    settings = runpy.run_path(str(Path(__file__).resolve().parents[2] / "configs" / "rows.py"))["get_config"]()
    validation.check(settings)
    settings.data.window, settings.data.channels = window, 5
    detector = ganomaly.from_config(settings)
    state = jax.eval_shape(detector.init, jax.random.key(0))
    (size,) = jax.export.symbolic_shape("b")
    batch = jax.ShapeDtypeStruct((16, *detector.shape), np.float32)
    for platform in ("cuda", "tpu"):
        step = jax.export.export(jax.jit(detector.update), platforms=[platform])(state, batch)
        assert "stablehlo.dot_general" in step.mlir_module() and "stablehlo.custom_call" not in step.mlir_module()
        any_size = jax.ShapeDtypeStruct((size, *detector.shape), np.float32)
        jax.export.export(jax.jit(detector.score), platforms=[platform])(detector.variables(state), any_size)


@pytest.mark.parametrize("steps", [4, 5, 8, 19, 20, 64])
def test_any_length_of_a_window_comes_back(steps):
    detector = ganomaly.Ganomaly((steps, 3), latent_size=2, features=2)
    state = jax.eval_shape(detector.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, steps, 3), np.float32)
    assert jax.eval_shape(detector.reconstruct, detector.variables(state), x).shape == x.shape


def test_convolutions_along_time_are_those_of_lax():
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, 10, 3)).astype(np.float32), random.normal(size=(4, 3, 5)).astype(np.float32)
    names = ("NWC", "WIO", "NWC")
    down = jax.lax.conv_general_dilated(x, kernel, (2,), [(1, 1)], dimension_numbers=names)
    np.testing.assert_allclose(row_layers.downsample(x, kernel), down, atol=1e-5)
    same = jax.lax.conv_general_dilated(x, kernel[:3], (1,), [(1, 1)], dimension_numbers=names)
    np.testing.assert_allclose(row_layers.convolve(x, kernel[:3]), same, atol=1e-5)
    # The transpose of downsampling is upsampling.
    start = np.zeros((2, 20, 5), np.float32)
    _, back = jax.vjp(lambda x: row_layers.downsample(x, kernel.transpose(0, 2, 1)), start)
    np.testing.assert_allclose(row_layers.upsample(x, kernel), back(x)[0], atol=1e-4)


def test_members_compute_what_they_would_alone(labelled, tmp_path):
    settings = rows_config(0, steps=6)
    alone = gj.train(settings, tmp_path / "alone", labelled, log=quiet)
    settings.members.seeds = "0,1"
    team = gj.train_members(settings, tmp_path / "team", labelled, log=quiet)
    np.testing.assert_allclose(team["seed0"](labelled[0][-30:]), alone(labelled[0][-30:]), rtol=1e-4)


# Which sensor it was


def test_contributions_add_up_and_name_the_sensor(trained):
    _, scorer = trained
    x = plant(60, 5)
    x[:, 2] += 1  # ten times its own noise
    found = sensors.contributions(scorer, x)
    assert found.values.shape == (len(scorer(x)), 4)
    # A sum of gradients at so many points stands for the integral: where the gradient jumps, at the kinks of the
    # networks, it is off by up to half a step. The error falls as 1 / steps; 4 / steps leaves room for several kinks.
    for steps in (sensors.STEPS, 8 * sensors.STEPS):
        found = sensors.contributions(scorer, x, steps)
        difference = found.scores - found.centre_score
        assert abs(found.values.sum(1) - difference).max() < 4 / steps * abs(difference).max()
    assert found.top(0)[0][0] == "level" and len(found.top(0)) == 3
    x[0, 1] = np.nan
    assert sensors.contributions(scorer, x).top(0) == []


# Tables


def test_columns_are_taken_by_name_and_a_missing_one_is_refused(trained, labelled, tmp_path):
    _, scorer = trained
    x = labelled[0][-40:]
    order = [2, 0, 3, 1]
    mixed = write(tmp_path / "mixed.csv", x[:, order], [COLUMNS[k] for k in order], time=True)
    found = sensors.judge_tables(scorer, [mixed])
    assert_scores_close(scorer, scorer.as_input(x), found.judged.scores, scorer(x))
    assert found.names[-1] == f"{mixed}:40"
    lacking = write(tmp_path / "lacking.csv", x[:, :3], ["pressure", "flow", "levels"])
    with pytest.raises(UserError, match=r"no column 'level'.*closest is 'levels'"):
        sensors.judge_tables(scorer, [lacking])
    more = write(tmp_path / "more.csv", np.c_[x, x[:, :1]], [*COLUMNS, "speed"])
    found = sensors.judge_tables(scorer, [more, lacking])
    assert any("speed" in note for note in found.notes)
    assert found.judged.verdicts[-1] == "invalid" and "'level'" in found.reasons[-1]
    frame = pytest.importorskip("pandas").DataFrame(x[:, order], columns=[COLUMNS[k] for k in order])
    assert_scores_close(scorer, scorer.as_input(x), scorer(frame), scorer(x))


def test_the_command_trains_on_tables_and_predicts(labelled, tmp_path, capsys):
    x, labels = labelled
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "test").mkdir()
    write(tmp_path / "data" / "train" / "a.csv", x[:500], time=True)
    tested = write(tmp_path / "data" / "test" / "b.csv", x[500:], labels=labels[500:], time=True)
    workdir = str(tmp_path / "run")
    sizes = ["--config.model.latent_size=2", "--config.model.features=8", "--config.train.batch_size=16"]
    sizes += ["--config.mesh.devices=1", "--config.train.steps=5", "--config.data.window=8"]
    assert main.main(["train", str(tmp_path / "data"), "--workdir", workdir, *sizes]) == 0
    said = capsys.readouterr().out
    assert "not used as sensors because of their names: time" in said and "windows" in said and "images" not in said
    assert main.main(["predict", "--workdir", workdir, str(tested)]) == 0
    with (tmp_path / "run" / "predictions" / f"{tested.stem}.csv").open() as file:
        predicted = list(csv.DictReader(file))
    assert len(predicted) == 400 - 7 and predicted[0]["path"] == f"{tested}:8"
    assert main.main(["evaluate", "--workdir", workdir]) == 0
    assert main.main(["evaluate", "--workdir", workdir, "--data", str(tested)]) == 0
    assert main.main(["plan", str(tmp_path / "data"), *sizes]) == 0
    assert main.main(["explain", str(tested), "--workdir", workdir]) == 2
    assert main.main(["train", str(tmp_path / "data"), "--workdir", workdir + "2", "--config.train.flip=1"]) == 2


def test_a_table_of_another_country_is_predicted_with_its_times(trained, labelled, tmp_path, capsys):
    workdir, scorer = trained
    x = np.round(labelled[0][-20:], 3)
    path = tmp_path / "=cmd|' day.csv"
    lines = [";".join(("Zeit", *COLUMNS))]
    for i, row in enumerate(x):
        lines.append(";".join((f"12.05.2024 10:{i:02}", *(f"{v:.3f}".replace(".", ",") for v in row))))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["predict", "--workdir", str(workdir), str(path), "--out", str(tmp_path / "rows.csv"), "--overwrite"]
    # By themselves 50,123 and the like may be thousands.
    if scorer.input_shape == (4,):
        path.write_text("\n".join([lines[0], "12.05.2024 10:00;50,123;51,234;52,345;53,456"]), encoding="utf-8")
        assert main.main(words) == 2
        assert "state which with" in capsys.readouterr().err
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main.main([*words, "--csv", "semicolon,decimal-comma"]) == 0
    assert "is read as separated by semicolons, decimal comma" in capsys.readouterr().out
    with (tmp_path / "rows.csv").open() as file:
        predicted = list(csv.DictReader(file))
    first = 20 - len(predicted)
    assert [row["time"] for row in predicted] == [f"2024-05-12T10:{i:02}:00" for i in range(first, 20)]
    np.testing.assert_allclose([float(row["score"]) for row in predicted], scorer(x), rtol=1e-4, atol=1e-6)


def test_what_is_a_sensor_is_said(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Time,a,label,b,site\n1,2.5,0,,x\n2,3e1,1,NaN,y\n")
    table = tables.read(path)
    assert table.columns == ("a",) and table.labels.tolist() == ["0", "1"]
    assert table.notes == (
        "a.csv: not used as sensors because of their names: Time",
        "a.csv: not used as sensors because they contain words: site ('x')",
        "a.csv: not used as sensors because they are empty: b",
        "a.csv: the time of a row is Time",
    )
    assert tables.read(path, ["b", "a"]).columns == ("b", "a")
    assert tables.read(path, left_out=["b"]).columns == ("a",)
    for text, match in (
        ("1,2\n3,4\n", "first line contains only numbers"),
        ("a,b\n1,2\n3\n", "row 2 has 1 values, the header 2"),
        ("a,b\n1,2\n1,ERR\n", "column 'b' holds 'ERR' in row 2"),
        ("a,a\n1,2\n", "several columns are called a:"),
        ("a,b\n", "holds no rows"),
        ("", "is empty"),
        ("a,label\n1,\n", "1 rows have no label"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=match):
            tables.read(path)
    with pytest.raises(UserError, match=r"none\.csv"):
        tables.read(tmp_path / "none.csv")
    assert tables.names_of(tables.as_text(['a,"b', "c"])) == (('a,"b', "c"), ())


def test_parquet_is_read_as_csv_is(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"time": [1, 2], "a": [1.5, None], "on": [True, False], "site": ["x", "y"], "label": ["normal", "leak"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    table = tables.read(tmp_path / "a.parquet")
    assert table.columns == ("a", "on") and table.labels.tolist() == ["normal", "leak"]
    np.testing.assert_array_equal(table.values, [[1.5, 1], [np.nan, 0]])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="cannot be read"):
        tables.read(tmp_path / "b.parquet")


def test_missing_values_are_never_silent(trained, tmp_path):
    x = plant(200, 3)
    x[20:23, 1] = np.nan
    x[30, 3] = np.nan
    settings = rows_config(4)
    with pytest.raises(UserError, match=r"of flow, temperature in .*flow 3, temperature 1.*missing=last"):
        resolution.resolve(settings, x)
    settings.data.missing = "last"
    this = resolution.resolve(settings, x)
    assert any("flow 3, temperature 1" in note for note in this.dataset.notes)
    np.testing.assert_allclose(this.dataset.images[23, 0, 1], x[23, 1], rtol=1e-6)
    np.testing.assert_allclose(this.dataset.images[22, 0, 1], x[19, 1], rtol=1e-6)
    settings.data.missing = "mask"
    this = resolution.resolve(settings, x)
    unit = np.asarray(preprocess.to_unit(this.dataset.images[21, 0], *this.pixels[1:]))
    assert abs(unit[1]) < 1e-5 and np.isfinite(this.dataset.images).all()
    _, scorer = trained
    table = write(tmp_path / "a.csv", x)
    found = sensors.judge_tables(scorer, [table])
    invalid = np.array(found.judged.verdicts) == "invalid"
    np.testing.assert_array_equal(invalid, np.isnan(scorer.as_input(x)).reshape(len(invalid), -1).any(1))
    assert "flow" in found.reasons[int(invalid.argmax())] and "flow 3, temperature 1" in found.notes[0]
    masked = dataclasses.replace(scorer.config, data=dataclasses.replace(scorer.config.data, missing="mask"))
    assert np.isfinite(dataclasses.replace(scorer, config=masked)(x)).all()


def test_shapes_are_never_guessed(trained):
    _, scorer = trained
    cube = np.zeros((40, 16, 16), np.float32)
    assert not row_windows.takes(cube, config.Data()) and row_windows.takes(cube, config.Data(kind="rows"))
    assert row_windows.takes(np.zeros((40, 3)), config.Data())
    assert row_windows.from_rows(cube, settings=config.Data(kind="rows")).images.shape == (40, 16, 16)
    with pytest.raises(UserError, match=r"windows of 16 rows, data.window=8"):
        row_windows.from_rows(cube, settings=config.Data(window=8))
    with pytest.raises(UserError, match="expected numbers"):
        scorer(np.zeros((5, 3)))
    with pytest.raises(UserError, match="the longest recording has 5 rows"):
        row_windows.from_rows(np.zeros((5, 3)), settings=config.Data(window=8))
    with pytest.raises(UserError, match="got 2 names"):
        row_windows.from_rows(np.zeros((5, 3)), columns=("a", "b"))


def test_an_npz_holds_rows_with_names_and_recordings(tmp_path):
    x = plant(40, 0)
    np.savez(tmp_path / "a.npz", rows=x, labels=np.zeros(40, int), columns=COLUMNS, segments=np.repeat([0, 1], 20))
    settings = config.Data(source=str(tmp_path / "a.npz"), window=8)
    made = resolution.sources.load(settings)
    assert made.feature_names == COLUMNS and len(made.images) == 2 * 13
    np.savez(tmp_path / "b.npz", x_train=x, x_test=x[:20], y_test=np.repeat([0, 1], 10))
    made = resolution.sources.load(config.Data(source=str(tmp_path / "b.npz")))
    assert made.parts.tolist() == [0] * 40 + [1] * 20 and made.labels.sum() == 10


def test_the_real_process_is_told_from_its_faults(tmp_path):
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "tep" / "tep_f32.npz"
    if not path.exists():
        pytest.skip("the Tennessee Eastman data are not here")
    with np.load(path) as file:
        x = np.concatenate([file["train_00"], file["test_01"]])
    labels, parts = np.repeat([0, 1], [660, 800]), np.repeat([0, 1], [500, 960])
    settings = rows_config(0, steps=150)
    settings.data.columns, settings.model.latent_size = "", 8
    dataset = row_windows.from_rows(x, labels, parts=parts, settings=settings.data)
    gj.train(settings, tmp_path / "run", dataset, log=quiet)
    assert evaluate.evaluate(tmp_path / "run", own=dataset).metrics["auroc"] > 0.95


def test_a_list_beside_images_does_not_make_rows_of_them(tmp_path):
    for folder in ("images", "tables"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "list.csv").write_text("a,b\n1,2\n")
    (tmp_path / "images" / "deep" / "x.PNG").touch()
    assert not row_folders.is_source(tmp_path / "images", config.Data())
    assert row_folders.is_source(tmp_path / "tables", config.Data())


def test_other_tables_are_taken_by_the_names_of_their_sensors(tmp_path):
    """Threshold, check, and what a monitor compares with: the order of a table's columns is nothing."""
    settings = rows_config(steps=2)
    settings.data.columns = ""
    settings.data.source = str(write(tmp_path / "old.csv", plant(200, 0)))
    gj.train(settings, tmp_path / "run", log=quiet)
    same, other = write(tmp_path / "same.csv", plant(150, 1)), tmp_path / "other.csv"
    rows_of = [line.split(",")[::-1] for line in same.read_text().splitlines()]
    other.write_text("\n".join(",".join(cells) for cells in rows_of) + "\n")
    scorer = gj.load(tmp_path / "run")
    asked, normals = [], []
    for source in (same, other):
        checked = config.Config()
        checked.data.source = str(source)
        asked.append([(one.code, one.what) for one in data_check.check(checked, scorer).findings])
        normals.append(reference.learn(scorer, tmp_path / "run", str(source)).normal)
    assert asked[0] == asked[1]
    np.testing.assert_array_equal(normals[0].low, normals[1].low)
    thresholds = [recalibrate(tmp_path / "run", str(source)).threshold for source in (same, other)]
    assert thresholds[0] == thresholds[1]
    (tmp_path / "less.csv").write_text("\n".join(line.rpartition(",")[0] for line in same.read_text().splitlines()))
    with pytest.raises(UserError, match=f"no column '{COLUMNS[-1]}'"):
        recalibrate(tmp_path / "run", str(tmp_path / "less.csv"))
