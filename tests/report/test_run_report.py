import ast
import base64
import dataclasses
import html.parser
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganomaly_jax.core import config, config_values
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import curves, metrics
from ganomaly_jax.report import curve_plots, figures, image_grids, run_report, sensor_plots
from ganomaly_jax.report import html as report_html
from ganomaly_jax.runs import diagnostics

THRESHOLD = 1.0
HOSTILE = """a"><script src='http://evil.example/x.js'>alert(1)</script><img src="https://evil.example/">\n{body}.png"""


def make_case(kind="false positive", **changes):
    generator = np.random.default_rng(0)
    x, x_hat = generator.uniform(-1, 1, (2, 16, 16, 1)).astype(np.float32)
    case = figures.Case("0001.png", kind, x, x_hat, 2.0, 0.01, THRESHOLD, "anomalous", 0)
    return dataclasses.replace(case, **changes)


def scored(n=200, seed=0):
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) % 4 == 0).astype(int)
    return labels, np.exp(generator.normal(size=n) * 0.5 - 1 + 1.5 * labels)


def write_history(path, steps=range(10, 60, 10), tail='{"step": 60, "adver'):
    with path.open("w") as file:
        for step in steps:
            record = {name: 1 / step for name in ("adversarial", "contextual", "encoder", "generator")}
            record |= {"step": step, "epoch": step / 10, "images_per_second": 9.0, "discriminator": float("nan")}
            file.write(json.dumps(record) + "\n")
        file.write(tail)


class Tags(html.parser.HTMLParser):
    """Collects the tags of a page, what they load, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        self.text += data


def fill(workdir):
    """A run's folder with everything in it; returns the arguments of `write`."""
    folder = workdir / "pictures"
    folder.mkdir()
    labels, scores = scored()
    settings = config.Config()
    settings.data.source, settings.data.columns, settings.train.epochs = HOSTILE, HOSTILE, 7
    (workdir / "config.json").write_text(json.dumps(config_values.to_dict(settings)))
    (workdir / "env.json").write_text(json.dumps({"versions": {"jax": "9.8.7"}, HOSTILE: [HOSTILE]}))
    group = {"group": HOSTILE, "n_normal": 9, "n_anomalous": 9, "threshold": 1.0, "auroc": None}
    group |= {"false_positive_rate": [0.125, 0.0625, 0.25], "true_positive_rate": [0.5, 0.25, 0.75]}
    figures_of = {"auroc": 0.75, "interval": [0.5, 1.0], "average_precision": 0.5, "difference": [0.25, -0.125, 0.5]}
    figures_of |= {"false_positive_rate": 0.25, "true_positive_rate": 0.75}
    found = metrics.summary(labels, scores, THRESHOLD) | {
        "threshold": THRESHOLD,
        "threshold_source": f"From 360 calibration images & {HOSTILE}",
        "warnings": ["AUROC is below 0.6 <b>really</b>."],
        "per_class": {HOSTILE: 0.125, "gun": None},
        "n_invalid": 3,
        "protocol": HOSTILE,
        "seed": 12,
        "groups": {"rows": [group], "gaps": [HOSTILE], "unnamed": 1},
        "baselines": {"detector": figures_of, HOSTILE: figures_of},
        "combinations": {},
        "baselines_notes": [HOSTILE],
    }
    (workdir / "metrics.json").write_text(json.dumps(found))
    write_history(workdir / "history.jsonl")
    for epoch in (5, 10, 100):
        image_grids.save(Image.new("RGB", (20, 10 + epoch)), folder / f"epoch_{epoch}.png")
    image_grids.save(Image.new("RGB", (20, 10)), folder / "examples.png")
    (folder / "false_negative_09.png").write_text("of an earlier evaluation")
    cases = [make_case(name=HOSTILE, verdict=HOSTILE, label="gun $x_{$"), make_case(name="日本.png")]
    cases.append(make_case("false negative", verdict="normal", score=0.5, label=1))
    return cases, curves.scored(labels, scores, THRESHOLD), 1.0


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(workdir, text of the report, its tags) of one full run."""
    workdir = tmp_path_factory.mktemp("run")
    path = run_report.write(workdir, *fill(workdir))
    assert path == workdir / "report.html"
    text = path.read_text("utf-8")
    return workdir, text, Tags(text)


def test_the_report_needs_no_other_file(written):
    _, text, tags = written
    assert tags.addresses
    assert all(address.startswith("data:image/png;base64,") for address in tags.addresses)
    assert not {"script", "link", "iframe", "object", "a", "base", "form"} & set(tags.tags)
    assert "url(" not in text
    assert "@import" not in text
    for address in tags.addresses:
        with Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1], validate=True))) as image:
            image.load()
    # ROC, precision-recall, histogram, three cases, losses, three pictures of the training, examples
    assert len(tags.addresses) == 11


def test_hostile_text_stays_text(written):
    _, text, tags = written
    assert "<script" not in text
    assert "<b>" not in text
    assert text.count("</html>") == 1
    assert "12.5 (6.2 to 25.0)" in tags.text
    assert "+0.250 (-0.125 to +0.500)" in tags.text
    for hostile in (HOSTILE, "AUROC is below 0.6 <b>really</b>."):
        assert hostile.split("\n")[0] in tags.text
    assert tags.tags.count("img") == 11


def test_hostile_names_of_columns_are_drawn_and_stay_out_of_the_page(tmp_path):
    x = np.array([0.5, -0.5, 2.0], np.float32)
    columns = (HOSTILE, "$x_{$", "\ud800")

    def draw(case, _):
        figure = figures.new_figure(9, sensor_plots.height(case.x))
        sensor_plots.case(figure, case.x, case.x_hat, columns)
        return figure

    case = make_case(name=HOSTILE, x=x, x_hat=x / 2, draw=draw)
    page = run_report.write(tmp_path, [case], curves.scored([0, 1], [2.0, 0.5], 1.0), 1.0)
    text = page.read_text("utf-8")
    assert "<script" not in text and "alert(1)" in Tags(text).text


def test_the_report_says_what_counts(written):
    _, _, tags = written
    found = metrics.summary(*scored(), THRESHOLD)
    for words in (
        f"{found['auroc']:.4g}",
        f"{found['average_precision']:.4g}",
        "From 360 calibration images &",
        "150 normal, 50 anomalous",
        "3 more could not be scored",
        "9.8.7",
        "0.125",
        "not defined",
        "train.epochs",
        f"{round(150 * found['false_positive_rate'])} of 150 normal images are flagged. 2 shown",
        f"{round(50 * (1 - found['true_positive_rate']))} of 50 anomalous images are missed. 1 shown",
    ):
        assert words in tags.text
    warning = tags.text.index("AUROC is below 0.6")
    assert warning < tags.text.index("average precision")


def test_the_values_that_differ_from_their_default_show_it(written):
    _, text, _ = written
    changed, everything = text.split("<details>")
    assert "<tr><td>train.epochs</td><td>7</td><td>15</td></tr>" in changed
    assert "<td>(empty)</td>" in changed
    assert "train.keep" not in changed
    assert "<tr><td>train.keep</td><td>2</td></tr>" in everything
    assert "<tr><td>train.epochs</td><td>7</td></tr>" in everything


def test_the_pictures_lie_in_their_folder(written):
    workdir, _, _ = written
    names = set(os.listdir(workdir / "pictures"))
    curves = {f"{name}.{kind}" for name in ("roc", "precision_recall", "histogram") for kind in ("png", "csv")}
    cases = {"false_positive_01.png", "false_positive_02.png", "false_negative_01.png"}
    assert names == curves | cases | {"losses.png", "examples.png", "epoch_5.png", "epoch_10.png", "epoch_100.png"}
    for name in names:
        if name.endswith(".png"):
            with Image.open(workdir / "pictures" / name) as image:
                assert image.format == "PNG"
                image.load()
                if name in cases:
                    assert image.width == 1350
                    assert 500 < image.height < 700
    assert sorted(os.listdir(workdir)) == sorted(
        ["config.json", "env.json", "history.jsonl", "metrics.json", "pictures", "report.html"]
    )


def test_the_pictures_of_the_training_are_in_order(written):
    _, _, tags = written
    assert re.findall(r"reconstructions, epoch (\d+)", tags.text) == ["5", "10", "100"]


def test_of_many_pictures_of_the_training_six_are_shown(tmp_path):
    for epoch in range(1, 101):
        image_grids.save(Image.new("L", (4, 4)), tmp_path / "pictures" / f"epoch_{epoch}.png")
    text = Tags(run_report.write(tmp_path, [], curves.scored([], [], None), 1.0).read_text()).text
    found = [int(epoch) for epoch in re.findall(r"reconstructions, epoch (\d+)", text)]
    assert len(found) == 6
    assert (found[0], found[-1]) == (1, 100)


def test_the_health_of_the_training_is_shown_where_it_was_measured(tmp_path):
    lines = [{"step": step, diagnostics.VARIANCE: 0.5} for step in (10, 20)]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    text = Tags(run_report.write(tmp_path, [], curves.scored([], [], None), 1.0).read_text()).text
    assert "Training health, measured on normal items" in text
    assert "Training losses" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is missing"),
        ("{", "cannot be read"),
        ("[1]", "does not hold an object"),
        ('{"a": ' * 100_000, "cannot be read"),
    ],
    ids=["missing", "cut off", "a list", "deep"],
)
def test_what_is_missing_or_broken_is_left_out_with_a_sentence(tmp_path, content, words):
    names = ("config.json", "env.json", "metrics.json", "history.jsonl")
    if content is not None:
        for name in names:
            (tmp_path / name).write_text(content)
    text = Tags(run_report.write(tmp_path, [], curves.scored([], [], None), 1.0).read_text()).text
    for name in names[:3]:
        assert f"{name} {words}" in text
    assert "history.jsonl is missing or holds no losses" in text
    assert "No pictures were saved during training." in text
    assert "There is no threshold" in text
    assert "There are no scores to plot." in text


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_a_histogram_alone(tmp_path, label):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "roc.png").write_text("of an earlier evaluation")
    text = Tags(run_report.write(tmp_path, [], curves.scored([label] * 9, np.arange(9.0), 3.0), 1.0).read_text()).text
    assert sorted(os.listdir(folder)) == ["histogram.csv", "histogram.png"]
    assert "not defined for a single class" in text
    assert ("5 of 9 normal images are flagged" if label == 0 else "4 of 9 anomalous images are missed") in text
    assert "nan" not in text.lower()


def test_scores_that_are_not_finite_count_neither_way(tmp_path):
    labels, scores = [0, 1, 1, 0, 1], [0.1, 0.9, np.nan, np.inf, 0.2]
    text = Tags(run_report.write(tmp_path, [], curves.scored(labels, scores, 0.5), 1.0).read_text()).text
    assert "0 of 1 normal images are flagged" in text
    assert "1 of 2 anomalous images are missed" in text
    assert curve_plots.curves(curves.scored([], [], 0.5), tmp_path) == []


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'\.\./\.\./x': expected one of false positive"):
        run_report.write(tmp_path, [make_case("../../x")], curves.scored([0, 1], [0.0, 1.0], 0.5), 1.0)


def test_a_report_that_cannot_be_written_keeps_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")

    def full(self, *_, **__):
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"report\.html.*No space left"):
        run_report.write(tmp_path, [], curves.scored([], [], None), 1.0)
    assert (tmp_path / "report.html").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["pictures", "report.html"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "pictures").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*pictures"):
        run_report.write(tmp_path, [], curves.scored([], [], None), 1.0)


def test_without_matplotlib_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    old = tmp_path / "pictures" / "false_positive_01.png"
    old.parent.mkdir()
    old.write_text("old")
    with pytest.raises(report_html.MissingError, match=r"pip install 'ganomaly-jax\[report\]'"):
        run_report.write(tmp_path, [], curves.scored([0, 1], [0.0, 1.0], 0.5), 1.0)
    assert old.exists()
    assert issubclass(report_html.MissingError, UserError)


def test_without_jinja2_nothing_is_touched_and_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    report_html.environment.cache_clear()
    with pytest.raises(report_html.MissingError, match="need jinja2: pip install jinja2"):
        run_report.write(tmp_path, [make_case()], curves.scored([0, 1], [0.0, 1.0], 0.5), 1.0)
    assert not list(tmp_path.iterdir())


def test_a_template_that_lacks_a_value_is_an_error():
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(jinja2.UndefinedError):
        report_html.render(report_html.REPORTS, "base.html", title="a")


def test_matplotlib_is_imported_lazily_and_pyplot_never():
    for module in (curve_plots, figures, report_html, run_report):
        tree = ast.parse(Path(module.__file__).read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("pyplot" in ast.unparse(node) for node in imports)
        top = [node for node in imports if node in tree.body]
        assert top
        assert not any(name in ast.unparse(node) for node in top for name in ("matplotlib", "PIL", "jinja2"))
