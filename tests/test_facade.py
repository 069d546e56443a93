"""The public API: `import ganomaly_jax as gj` is all a program needs, and it loads nothing until a name is used."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ganomaly_jax
import ganomaly_jax as gj

SCRIPT = """
import json, sys
import ganomaly_jax as gj
heavy = {"jax", "numpy", "flax", "PIL"} & set(sys.modules)
assert not heavy, heavy
found = {name: getattr(gj, name) for name in gj.__all__}
space = {}
exec("from ganomaly_jax import *", space)
space.pop("__builtins__")
assert space == found
assert set(dir(gj)) == {*gj.__all__, "__version__"}
print(json.dumps({name: [callable(one), one.__module__, bool(one.__doc__)] for name, one in found.items()}))
"""


def test_every_name_works_in_a_fresh_process():
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert list(found) == ganomaly_jax.__all__
    assert {name for name, (is_callable, _, has_text) in found.items() if not (is_callable and has_text)} == set()
    for name, (_, module, _) in found.items():
        assert module == f"ganomaly_jax.{ganomaly_jax._MODULE_OF[name]}", name


def test_type_checkers_read_the_same_names():
    tree = ast.parse(Path(ganomaly_jax.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    read = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert read == {name: (f"ganomaly_jax.{module}", name) for name, module in ganomaly_jax._MODULE_OF.items()}


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="'ganomaly_jax' has no attribute 'trian'"):
        ganomaly_jax.trian  # noqa: B018


MISTAKES = {
    "a folder in place of the configuration": (
        lambda run, scorer: gj.train("photos", "W"),
        "config is 'photos': expected a gj.Config, as in config = gj.Config(); config.data.source = 'photos'; "
        "gj.train(config, 'runs/mine')",
    ),
    "the class": (lambda run, scorer: gj.train(gj.Config, "W"), "config is the class Config: expected a gj.Config"),
    "a dict": (lambda run, scorer: gj.train_members({"seed": 1}, "W"), "config is of type dict: expected a gj.Config"),
    "arrays in place of the folder": (
        lambda run, scorer: gj.train(gj.Config(), np.zeros((9, 16, 16))),
        "workdir is of type ndarray: expected the path of a folder, as in gj.train(config, 'runs/mine', arrays=images)",
    ),
    "a folder in place of arrays": (
        lambda run, scorer: gj.train(gj.Config(), "W", "photos"),
        "arrays='photos': expected arrays; for a folder or file set config.data.source = 'photos'",
    ),
    "check": (lambda run, scorer: gj.check("photos"), "config.data.source = 'photos'; gj.check(config)"),
    "check with": (lambda run, scorer: gj.check(gj.Config(), run), "expected a gj.Scorer, as in gj.check("),
    "plan": (lambda run, scorer: gj.plan("photos"), "gj.plan(config)"),
    "a file to load": (lambda run, scorer: gj.load(run / "config.json"), "config.json is a file: expected the folder"),
    "a scorer to load": (lambda run, scorer: gj.load(scorer), "workdir is of type Scorer: expected the path"),
    "a configuration to evaluate": (
        lambda run, scorer: gj.evaluate(gj.Config()),
        "workdir is of type Config: expected the path of a folder, as in gj.evaluate('runs/mine')",
    ),
    "arrays as source": (
        lambda run, scorer: gj.evaluate(run, np.zeros((9, 16, 16))),
        "source is of type ndarray: expected a folder or file of data; arrays are gj.evaluate('runs/mine', arrays=",
    ),
    "a rate as text": (lambda run, scorer: gj.evaluate(run, false_positive_rate="0.1"), "expected a rate"),
    "groups": (lambda run, scorer: gj.evaluate(run, arrays=np.zeros((9, 16, 16), np.uint8), by=3), "by is 3"),
    "members": (lambda run, scorer: gj.evaluate_members(gj.Config()), "gj.evaluate_members('runs/table')"),
    "compare": (lambda run, scorer: gj.compare(scorer, scorer), "first is of type Scorer"),
    "recalibrate": (lambda run, scorer: gj.recalibrate(scorer), "workdir is of type Scorer"),
    "recalibrate on": (lambda run, scorer: gj.recalibrate(run, np.zeros((9, 16, 16))), "arrays=images"),
    "recalibrate to": (lambda run, scorer: gj.recalibrate(run, tail="0.1"), "tail is '0.1': expected a number"),
    "update": (lambda run, scorer: gj.update(run, np.zeros(3), "W"), "source is of type ndarray"),
    "a file that is not there": (lambda run, scorer: scorer("nothing.png"), "nothing.png does not exist"),
    "one image": (lambda run, scorer: scorer(np.zeros((16, 16, 1), np.uint8)), "pass a single image as image[None]"),
    "no images": (lambda run, scorer: scorer(gj.Config()), "Config: expected images as an array"),
    "arrays as files": (lambda run, scorer: scorer.judge_files(np.zeros(3)), "arrays are for judge"),
    "explain": (lambda run, scorer: gj.explain(run, "a.png"), "gj.explain(gj.load('runs/mine'), 'a.png')"),
    "explain what": (lambda run, scorer: gj.explain(scorer, ["a.png"]), "path is of type list"),
    "picture": (lambda run, scorer: gj.picture(scorer, np.zeros(3), 0, ""), "found is of type ndarray"),
    "maps": (lambda run, scorer: gj.residual_maps(str(run), "a.png"), "expected a gj.Scorer"),
    "gradient": (lambda run, scorer: gj.gradient(run, np.zeros(3)), "expected a gj.Scorer"),
    "gradient of": (
        lambda run, scorer: gj.gradient(scorer, np.full((1, 16, 16, 1), 7, np.uint8)),
        "x has the type uint8 and the shape (1, 16, 16, 1): expected [n, 16, 16, 1] in [-1, 1]",
    ),
    "attribution": (lambda run, scorer: gj.integrated_gradients(scorer, "a.png"), "in [-1, 1], as in gj.integrated"),
    "contributions": (lambda run, scorer: gj.contributions(run, np.zeros(3)), "expected a gj.Scorer"),
    "streams": (lambda run, scorer: gj.compile_streams(run, 3), "expected a gj.Scorer"),
    "advance": (lambda run, scorer: gj.advance(scorer, np.zeros(3)), "gj.advance(streams, rows)"),
    "export": (lambda run, scorer: gj.export(gj.Config(), "out"), "gj.export('runs/mine', 'exported')"),
    "export to": (lambda run, scorer: gj.export(scorer, None), "out is None: expected the folder to write"),
    "import": (lambda run, scorer: gj.import_pytorch(np.zeros(3), "D", "W"), "path is of type ndarray"),
    "weights": (
        lambda run, scorer: gj.from_pytorch(gj.Ganomaly((16, 16, 1)), "netG.pth", "netD.pth"),
        "generator is 'netG.pth': expected tensors by name",
    ),
    "a shape": (lambda run, scorer: gj.Ganomaly(32), "shape is 32: expected a shape"),
    "another shape": (lambda run, scorer: gj.DenoisingAutoencoder("mnist"), "shape is 'mnist': expected a shape"),
    "a size": (lambda run, scorer: gj.Ganomaly((16, 16, 1), features="64"), "features is '64': expected a whole"),
    "a seed": (lambda run, scorer: gj.Config("photos"), "seed='photos': expected a whole number"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_argument_is_a_sentence_that_shows_the_right_call(mistake, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, said = MISTAKES[mistake]
    with pytest.raises(gj.UserError) as caught:
        call(*trained)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())
