"""The scoring function as a file: it gives the live scores, without this package, or it is not there at all."""

import hashlib  # noqa: I001
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tests.support import assert_scores_close, blobs

import ganomaly_jax
from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import export, export_runtime


@pytest.fixture(scope="module", params=["inside", "beside"])
def exported(request, trained, tmp_path_factory):
    """(folder, score, manifest)."""
    folder = tmp_path_factory.mktemp("export") / request.param
    export.export(trained[0], folder, request.param)
    return folder, *export_runtime.load(folder)


def test_exported_is_live_at_any_batch_size(trained, exported):
    _, score, manifest = exported
    for n in (1, 3, 64):
        x = np.concatenate([blobs(n, 5), blobs(1, 6, anomalous=True)])[-n:]
        judged = trained[1].judge(x)
        found = score(x)
        assert set(found) == set(manifest["output"]) >= {"score", "p_value"}
        assert found["score"].shape == (n,)
        assert_scores_close(trained[1], x, found["score"], judged.scores)
        np.testing.assert_allclose(found["p_value"], judged.p_values, atol=1.01 / (len(judged.p_values) + 1))


def test_the_manifest_says_what_is_there(trained, exported):
    folder, _, manifest = exported
    scorer = trained[1]
    beside = folder.name == "beside"
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    assert ("weights.npz" in manifest["files"]) == beside
    for name, entry in manifest["files"].items():
        assert (folder / name).stat().st_size == entry["size"]
    assert manifest["input"] == {
        "shape": ["b", 16, 16, 1], "dtype": "uint8", "low": 0.0, "high": 255.0, "fit": "stretch"
    }  # fmt: skip
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["threshold"] == scorer.threshold
    assert manifest["false_positive_rate"] == scorer.calibration.rate
    assert manifest["provenance"] == scorer.provenance
    assert manifest["versions"]["jax"] == jax.__version__
    assert len(manifest["arrays"]) == len(jax.tree.leaves(scorer.variables))
    checked = manifest["self_check"]
    assert checked["images"] == 64
    assert checked["largest_difference"] <= 1e-5 * checked["largest_score"]
    if beside:
        with np.load(folder / "weights.npz", allow_pickle=False) as file:
            assert {name: {"shape": list(file[name].shape), "dtype": str(file[name].dtype)} for name in file} == (
                manifest["arrays"]
            )


def test_a_process_without_this_package_and_flax_loads_it(trained, exported, tmp_path):
    folder = exported[0]
    np.save(tmp_path / "x.npy", blobs(5, 3))
    script = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ganomaly_jax", "flax", "optax", "orbax", "chex", "PIL"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Without())
import numpy as np
from loader import load
score, manifest = load()
found = score(np.load(sys.argv[1]))
np.savez(sys.argv[2], **found)
assert not {"ganomaly_jax", "flax"} & set(sys.modules)
"""
    call = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "x.npy"), str(tmp_path / "found.npz")]
    shutil.copytree(folder, tmp_path / "moved")
    ran = subprocess.run(call, cwd=tmp_path / "moved", capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    with np.load(tmp_path / "found.npz") as found:
        assert_scores_close(trained[1], blobs(5, 3), found["score"], trained[1](blobs(5, 3)))


def test_an_export_runs_inside_another_program(trained, exported):
    """Under jit and in a loop, on the device."""
    _, score, _ = exported
    x = jnp.asarray(blobs(12, 3)).reshape(3, 4, 16, 16, 1)
    scores = jax.jit(lambda x: jax.lax.map(lambda one: score(one)["score"], x))(x)
    assert_scores_close(trained[1], blobs(12, 3), scores.reshape(-1), trained[1](blobs(12, 3)))


def sealed(folder, change):
    """Changes the manifest of an export, its own hash being right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    export._write_manifest(folder, manifest)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m.update(format=2), "format"),
        (lambda m: m.update(kind="else"), "kind"),
        (lambda m: m.update(program="../score.stablehlo"), "program"),
        (lambda m: m.update(weights=None), "weights"),
        (lambda m: m.update(threshold="0"), "threshold"),
        (lambda m: m.update(threshold=True), "threshold"),
        (lambda m: m.pop("threshold"), "threshold"),
        (lambda m: m["input"].update(low=9e9), "range"),
        (lambda m: m["input"].update(low=[0.0, 0.0]), "range"),
        (lambda m: m["input"].update(high="x"), "range"),
        (lambda m: m["input"].update(shape=[]), "manifest"),
        (lambda m: m["input"].update(shape=["b", 2**40]), "input"),
        (lambda m: m["files"]["score.stablehlo"].update(size=-1), "files"),
        (lambda m: m["files"]["score.stablehlo"].update(size=3), "has more than 3 bytes"),
        (lambda m: m["files"].clear(), "score.stablehlo"),
        (lambda m: m.update(arrays={"a": {"shape": [2**50]}}), "arrays"),
        (lambda m: m.update(input=3), "manifest"),
    ],
)
def test_manifests_that_make_no_sense_are_refused(exported, tmp_path, change, what):
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    sealed(folder, change)
    with pytest.raises(ValueError, match=what):
        export_runtime.load(folder)


def test_an_export_that_is_replaced_while_it_is_read_is_read_again(exported, tmp_path, monkeypatch):
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    read, calls = export_runtime._read, []

    def replaced(folder, name, most):
        calls.append(name)
        if len(calls) == 2:  # the manifest has been read, the program not yet
            program = folder / "score.stablehlo"
            program.write_bytes(program.read_bytes() + b"another")
            sealed(
                folder,
                lambda m: m["files"]["score.stablehlo"].update(
                    size=program.stat().st_size, sha256=hashlib.sha256(program.read_bytes()).hexdigest()
                ),
            )
        return read(folder, name, most)

    monkeypatch.setattr(export_runtime, "_read", replaced)
    manifest, content = export_runtime._contents(folder)
    assert content["score.stablehlo"].endswith(b"another")
    assert manifest["files"]["score.stablehlo"]["size"] == len(content["score.stablehlo"])


def test_weights_that_claim_more_than_they_have_are_refused(exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    np.savez_compressed(folder / "weights.npz", a=np.zeros(10**6, np.float32))
    content = (folder / "weights.npz").read_bytes()
    with pytest.raises(ValueError, match="claims more bytes than it contains"):
        export_runtime._weights(content, {"a": {"shape": [10**6], "dtype": "float32"}}, folder)


def test_no_altered_export_loads(exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported[0], folder)
    rng = random.Random(0)
    files = [path for path in sorted(folder.iterdir()) if path.name != "loader.py"]  # which reads, and is not read
    for _ in range(60):
        path = rng.choice(files)
        before = path.read_bytes()
        content = bytearray(before)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with pytest.raises((ValueError, KeyError, OSError)):
            export_runtime.load(folder)
        path.write_bytes(before)
    export_runtime.load(folder)


def test_training_types_and_invalid_images(trained, tmp_path):
    import dataclasses

    scorer = dataclasses.replace(trained[1], dtype="float32", low=-2.0, high=3.0)
    manifest = export.export(scorer, tmp_path / "out")
    score, _ = export_runtime.load(tmp_path / "out")
    x = np.random.default_rng(0).uniform(-2, 3, (3, 16, 16, 1)).astype(np.float32)
    x[1, 2, 3] = np.nan
    assert manifest["input"]["dtype"] == "float32"
    np.testing.assert_allclose(score(x)["score"], scorer(x), rtol=1e-5, atol=1e-7)
    assert np.isnan(score(x)["p_value"]).tolist() == [False, True, False]


def test_images_of_the_run_are_in_the_self_check(trained, tmp_path):
    for i, image in enumerate(blobs(5, 3)):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    manifest = export.export(trained[1], tmp_path / "out", images=sorted(tmp_path.glob("*.png")))
    assert manifest["self_check"]["given"] == 5
    shutil.copytree(trained[0] / "detector", tmp_path / "run" / "detector")
    rows = "".join(f"{tmp_path / f'{i}.png'},0,1,1,normal,\n" for i in range(4))
    (tmp_path / "run" / "predictions.csv").write_text(f"path,label,score,p_value,verdict,reason\n{rows}gone.png,,,,,\n")
    assert export.export(tmp_path / "run", tmp_path / "out")["self_check"]["given"] == 4


def test_what_is_not_live_is_not_written(trained, tmp_path, monkeypatch):
    good = export.export(trained[1], tmp_path / "out")
    lower = export.lower

    def other(live, beside=False):
        function = jax.jit(lambda x: jax.tree.map(lambda y: 1.01 * y, live.outputs(live.variables, x)))
        return jax.export.export(function)(*lower(live, beside).in_avals)

    monkeypatch.setattr(export, "lower", other)
    with pytest.raises(UserError, match="differs from the live detector"):
        export.export(trained[1], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert export_runtime.load(tmp_path / "out")[1]["files"] == good["files"]


def test_what_does_not_run_is_not_written(trained, tmp_path, monkeypatch):
    def broken(program):
        raise RuntimeError("no such operation\nand so on")

    monkeypatch.setattr(export_runtime, "_stablehlo", broken)
    with pytest.raises(UserError, match=r"does not run here \(RuntimeError: no such operation\): nothing was written$"):
        export.export(trained[1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_but_an_export_is_replaced(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    export.export(trained[1], tmp_path / "empty")
    export.export(trained[1], tmp_path / "empty", "beside")
    (tmp_path / "empty" / "thesis.tex").write_text("years of work")
    shutil.copytree(trained[0] / "detector", tmp_path / "detector")
    (tmp_path / "file").write_text("")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"kind": "something else"}')
    for name in ("empty", "detector", "file", "web", "."):
        before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
        with pytest.raises(UserError, match="is not just an export"):
            export.export(trained[1], tmp_path / name)
        assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_nothing(trained, tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        export.export(trained[1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command(trained, tmp_path, capsys):
    run = ["export", "--workdir", str(trained[0])]
    assert main.main([*run, "--out", str(tmp_path / "out"), "--weights", "beside"]) == 0
    assert "scores differ by at most" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["weights"] == "beside"
    assert (tmp_path / "out" / "score.stablehlo").stat().st_size > 1000
    assert main.main(["export", "--workdir", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert main.main([*run, "--out", str(tmp_path)]) == 2
    assert not (tmp_path / "other").exists()


def test_what_is_absent_is_named(trained, tmp_path, monkeypatch):
    real = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if "flat" in name else real(name))
    with pytest.raises(UserError, match=r"ganomaly-jax\[export\]"):
        export.export(trained[1], tmp_path / "out")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"jax2onnx.*ganomaly-jax\[onnx\]"):
        export.export(trained[1], tmp_path / "out", form="onnx")
    for words in ({"form": "saved_model"}, {"weights": "outside"}, {"weights": "beside", "form": "onnx"}):
        with pytest.raises(UserError, match="expected"):
            export.export(trained[1], tmp_path / "out", **words)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("default")  # the converter and its parts have their own
def test_onnx_gives_the_live_scores(trained, tmp_path):
    pytest.importorskip("jax2onnx", reason="conversion to ONNX needs the extra `onnx`")
    pytest.importorskip("onnxruntime", reason="the check needs onnxruntime, of the extra `onnx`")
    manifest = ganomaly_jax.export(trained[0], tmp_path / "out", form="onnx")
    assert set(manifest["files"]) == {"score.onnx", "loader.py"}
    score, _ = export_runtime.load(tmp_path / "out")
    x = np.concatenate([blobs(80, 3), blobs(20, 4, anomalous=True)])
    judged = trained[1].judge(x)
    for n in (1, 3, 100):
        found = score(x[:n])
        np.testing.assert_allclose(found["score"], judged.scores[:n], rtol=1e-4)
        np.testing.assert_allclose(found["p_value"], judged.p_values[:n], atol=0.1)
