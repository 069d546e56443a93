"""ablation.py: each change does what it says, rows are paired as they should be, and what is refused."""

import dataclasses  # noqa: I001
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.support import TINY, blobs

from benchmarks.accuracy import ablation, ablation_page, ablation_variants, auroc_data
from benchmarks.accuracy.ablation_variants import VARIANTS, Corrupting, Rotating, Skipping, Spectral
from benchmarks.common import controls
from ganomaly_jax.data import datasets
from ganomaly_jax.data.images.preprocess import to_unit
from ganomaly_jax.model import corruption, losses

SIZES = {"shape": (16, 16, 1), "latent_size": 4, "features": 4, "average": 0.9}


@pytest.fixture(scope="module")
def batch():
    return to_unit(jnp.asarray(blobs(8, 3)), 0, 255)


def test_every_variant_keeps_the_structure_of_its_state_and_gives_the_scores_parts(batch):
    for name in VARIANTS:
        made = ablation_variants.detector(name, (16, 16, 1), 6, 4, 10)
        state = jax.eval_shape(made.init, jax.random.key(0))
        after, metrics = jax.eval_shape(made.update, state, batch)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state), name
        assert set(metrics) == set(made.losses)
        batches = jax.ShapeDtypeStruct((2, *batch.shape), batch.dtype)
        variables = jax.eval_shape(made.recompute_batch_stats, jax.eval_shape(made.variables, state), batches)
        found = jax.eval_shape(lambda variables, x, made=made: ablation_variants.described(made, variables, x),
                               variables, batch)  # fmt: skip
        assert found["z"].shape == (8, 16 if name == "latent_16" else 6)
        assert ("rotation" in found, "embedding" in found) == (name == "rotation", name == "contrast")
        assert ablation_variants.detector(name, (16, 16, 1), 6, 4, 10) is made


def test_fields_that_are_changed():
    base = ablation_variants.detector("base", (16, 16, 1), 6, 4, 10)
    for name, changed in (
        ("no_discriminator", {"adversarial_weight": 0.0}),
        ("encoder_10", {"encoder_weight": 10.0}),
        ("latent_16", {"latent_size": 16}),
        ("contrast", {"contrast_weight": 1.0}),
    ):
        assert ablation_variants.detector(name, (16, 16, 1), 6, 4, 10) == dataclasses.replace(base, **changed)


def test_the_cosine_ends_at_0():
    rates = ablation_variants.detector("cosine", (16, 16, 1), 6, 4, 10).optimizer
    weight = {"w": jnp.ones(())}
    state, sizes = rates.init(weight), []
    for _ in range(11):
        move, state = rates.update(weight, state)
        sizes.append(-float(move["w"]))
    steady = optax.adam(TINY.learning_rate, TINY.beta1).update(weight, optax.adam(1.0).init(weight))[0]["w"]
    assert sizes[0] == pytest.approx(-float(steady), rel=1e-4)
    assert sizes[5] == pytest.approx(sizes[0] / 2, rel=0.05) and sizes[10] == pytest.approx(0, abs=1e-12)


def test_kernels_are_divided_by_their_norm_through_which_no_gradient_goes():
    draw = jax.random.normal(jax.random.key(0), (4, 4, 3, 5))
    params = {"layer": {"kernel": draw}, "norm": {"scale": jnp.full(5, 2.0)}}
    found = ablation_variants.normed(params)
    assert np.linalg.norm(found["layer"]["kernel"].reshape(-1, 5), 2) == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(found["norm"]["scale"], params["norm"]["scale"])
    # Of a function of the normed kernel alone the gradient is square to the kernel: its size does not matter.
    grad = jax.grad(lambda p: jnp.sum(ablation_variants.normed(p)["layer"]["kernel"][0]))(params)["layer"]["kernel"]
    assert np.abs(grad).max() > 0.01
    assert float(jnp.vdot(grad, draw)) == pytest.approx(0, abs=1e-4)


def test_the_discriminator_computes_with_normed_kernels(tiny, batch):
    _, state, _ = tiny
    made = Spectral(**SIZES)
    variables = {name: getattr(state, name)["discriminator"] for name in ("params", "batch_stats")}
    larger = variables | {
        "params": jax.tree_util.tree_map_with_path(
            lambda path, leaf: 3 * leaf if path[-1].key == "kernel" else leaf, variables["params"]
        )
    }
    logits = jax.jit(lambda variables: made.discriminator.apply(variables, batch, train=False)[1])
    np.testing.assert_allclose(logits(variables), logits(larger), rtol=1e-4)
    plain = TINY.discriminator.apply(variables, batch, train=False)[1]
    assert np.abs(logits(variables) - plain).max() > 0.1 * np.abs(logits(variables)).max()


def test_skip_connections_pass_the_image_around_the_latent(tiny, batch):
    _, state, _ = tiny

    def spread(made, params, stats, cut):
        params = {**params, **cut}
        x_hat = made.generator.apply({"params": params, "batch_stats": stats}, batch, train=False)[0]
        return float(jnp.std(x_hat, axis=0).max())

    skipping = Skipping(**SIZES)
    own = jax.jit(skipping.init)(jax.random.key(0))
    params, stats = own.params["generator"], own.batch_stats["generator"]
    nothing = jax.tree.map(jnp.zeros_like, params["head"])
    assert spread(skipping, params, stats, {"head": nothing}) > 1e-4
    plain, decoder = state.params["generator"], state.params["generator"]["decoder"]
    closed = {"decoder": {**decoder, "head": jax.tree.map(jnp.zeros_like, decoder["head"])}}
    assert spread(TINY, plain, state.batch_stats["generator"], closed) == 0


def test_the_generator_is_shown_the_corrupted_image_and_wanted_to_give_the_clean_one(tiny, batch):
    _, state, _ = tiny
    made = Corrupting(**SIZES, noise=0.5, mask=0.5)
    metrics = jax.jit(lambda state, x: made.gradients(state, x)[2])(state, batch)
    seen = corruption.corrupt(jax.random.fold_in(jax.random.key(0xAB1), state.step), batch, 0.5, 0.5)
    variables = {name: getattr(state, name)["generator"] for name in ("params", "batch_stats")}
    (x_hat, *_), _ = TINY.generator.apply(variables, seen, train=True, mutable=["batch_stats"])
    assert float(metrics["contextual"]) == pytest.approx(float(losses.l1(batch, x_hat)), rel=1e-4)
    assert float(metrics["contextual"]) != pytest.approx(float(losses.l1(seen, x_hat)), rel=0.01)
    assert made.generator == TINY.generator


def test_the_rotation_head_learns_and_scores(batch):
    made = Rotating(**SIZES)
    state = jax.jit(made.init)(jax.random.key(0))
    turned = ablation_variants.quarters(batch)
    np.testing.assert_array_equal(turned[8:16], np.rot90(batch, 1, axes=(1, 2)))
    np.testing.assert_array_equal(np.rot90(turned[24:], 1, axes=(1, 2)), batch)
    gradients = jax.jit(lambda state, x: made.gradients(state, x)[0]["discriminator"]["embedding"]["kernel"])
    assert np.abs(gradients(state, batch)).max() > 0
    variables = made.variables(state)
    head = variables["discriminator"]["params"]
    variables["discriminator"]["params"] = {**head, "embedding": jax.tree.map(jnp.zeros_like, head["embedding"])}
    settled = jax.jit(made.recompute_batch_stats)(variables, jnp.stack([batch, batch]))
    moved = settled["discriminator"]["batch_stats"]["pyramid"]["down_0_norm"]["var"]
    assert np.abs(moved - 1).max() > 0.1
    np.testing.assert_allclose(made.outputs(settled, batch)["rotation"], np.log(4), rtol=1e-5)


def report(more):
    """Two sets, two seeds: the base at .5, and others' AUROC by a function of (set, seed)."""
    parts = []
    for name, own in {"base": lambda job, seed: 0.5, **more}.items():
        for job in ("digit 1", "car"):
            for seed in (0, 1):
                value = own(job, seed)
                scores = {} if value is None else {"squared": value, "pixel": value, "complexity": 0.4}
                parts.append({"configuration": name, "job": job, "seed": seed, "auroc": scores, "losses": {},
                              "protocol": {**vars(ablation.arguments(["--out", "x"]))}, "seconds": 1.0})  # fmt: skip
    machine = {"jax": {"device": "cpu"}, "processor": "one", "cores": 2, "commit": "c", "versions": {}}
    loads = {"before": [0.0], "after": [0.0]}
    return {"sets": list(ablation.SETS), "parts": parts, "machine": machine, "load_average": loads, "date": "today"}


def row(variant, score="squared"):
    return next(row for row in ablation_page.ROWS if (row.variant, row.score) == (variant, score))


def test_differences_are_paired_over_set_and_seed():
    made = report({"skip": lambda job, seed: 0.6 + 0.02 * seed, "noisy": lambda job, seed: 0.5 + 0.1 * (job == "car")})
    found = ablation_page.compared(made, row("skip"))
    assert found.mean == pytest.approx(0.11)
    assert found.error == pytest.approx(np.std([0.1, 0.1, 0.12, 0.12], ddof=1) / 2)
    assert found.verdict == "helps"
    unsure = ablation_page.compared(made, row("noisy"))
    assert (unsure.mean, unsure.verdict) == (pytest.approx(0.05), "no evidence")
    assert ablation_page.compared(made, row("base", "complexity")).verdict == "hurts"
    assert ablation_page.compared(made, row("masked")) is None


def test_pairs_that_are_missing_are_told(tmp_path):
    made = report({"skip": lambda job, seed: 0.6 if seed else None})
    page = ablation_page.markdown(made, "x.png")
    assert "| skip connections | 0.600 | +0.100 ± 0.000 (2 of 4 pairs) | 2 of 2 | helps | 0.600 | 0.600 |" in page
    pytest.importorskip("matplotlib")
    assert ablation_page.picture(made, tmp_path / "x.png") == "x.png"
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_a_set_for_one_seed():
    anomalous = blobs(40, 1, anomalous=True)
    dataset = made_of(np.concatenate([blobs(200, 0), anomalous]), np.repeat([0, 1], [200, 40]))
    images = ablation.split(ablation.Source("mnist", "b", "b", 3), dataset, 0, 100, 20)
    assert [len(part) for part in images] == [90, 10, 40, 40]
    assert images.trained.shape[1:] == (16, 16, 3)
    np.testing.assert_array_equal(images.labels, np.repeat([0, 1], 20))
    known = {image.tobytes() for image in anomalous}
    normal, odd = images.tested[:20, ..., :1], images.tested[20:, ..., :1]
    assert all(image.tobytes() in known for image in odd)
    trained = {image.tobytes() for image in np.concatenate([images.trained, images.held])[..., :1]}
    assert not trained & {image.tobytes() for image in np.concatenate([normal, odd])}


def made_of(images, labels):
    return datasets.Dataset(images, labels, ("a", "b"), None, None, tuple(map(str, range(len(images)))), 0.0, 255.0)


def test_runs_add_up_and_other_options_are_refused(tmp_path, monkeypatch, capsys):
    dataset = made_of(np.concatenate([blobs(120, 0), blobs(20, 1, anomalous=True)]), np.repeat([0, 1], [120, 20]))
    monkeypatch.setattr(auroc_data, "read", lambda *given: dataset)
    monkeypatch.setattr(ablation, "SETS", {"digit 1": ablation.Source("mnist", "b", "b", 1)})
    out = str(tmp_path / "found")
    sizes = {"steps": 2, "features": 4, "latent": 4, "batch": 8, "side": 16, "limit": 60, "test-limit": 20, "seeds": 0}
    small = [f"--{name}={value}" for name, value in sizes.items()]
    assert ablation.main(["--out", out, "--variants", "base", *small]) == 0
    (part,) = json.loads(Path(f"{out}.json").read_text())["parts"]
    rows = {row.score for row in ablation_page.ROWS if row.variant == "base"}
    assert set(part["auroc"]) == rows | {"squared"} and set(controls.CONTROLS) <= set(part["auroc"])
    assert all(0 <= value <= 1 for value in part["auroc"].values())
    assert part["images"] == {"trained": 54, "held": 6, "tested": 40}
    assert "ensemble of three trainings" in Path(f"{out}.md").read_text()
    capsys.readouterr()
    assert ablation.main(["--out", out, "--variants", "base", *small]) == 0
    assert "1 of them measured before" in capsys.readouterr().out
    assert ablation.main(["--out", out, "--variants", "base", *small, "--steps=3"]) == 2
    assert "steps 2 there and 3 here" in capsys.readouterr().err
    assert ablation.main(["--out", out, "--variants", "bsae"]) == 2
    assert "the nearest is 'base'" in capsys.readouterr().err
