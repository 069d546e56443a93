"""Our values against those recorded from the original PyTorch code: the worst relative error of each quantity.

    python benchmarks/common/parity.py

An error is the largest difference divided by the largest recorded value of the tensor. The recorded values are those of
tests/golden, which are rounded (see README.md there), unless another folder of reference_*.npz is given. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from ganomaly_jax.model.ganomaly import Ganomaly
from ganomaly_jax.model.pytorch import from_pytorch

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
LOSSES = {
    "adversarial": "err_g_adv",
    "contextual": "err_g_con",
    "encoder": "err_g_enc",
    "generator": "err_g",
    "discriminator": "err_d",
}


def worst(ours: jax.Array, theirs: np.ndarray) -> float:
    """Returns the largest difference divided by the largest recorded value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def compare(path: Path) -> dict[str, float]:
    """Returns {quantity: worst relative error} for one file of recorded values."""
    with np.load(path) as file:
        values = dict(file)

    def tensors(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}

    side, channels, latent, features, extra, _, steps, _ = (int(v) for v in values["meta"])
    detector = Ganomaly((side, side, channels), latent, features, extra)
    state = from_pytorch(detector, tensors("init/G/"), tensors("init/D/"))
    x = jnp.asarray(values["x"].transpose(0, 1, 3, 4, 2))
    found = {}

    variables = {"params": state.params["generator"], "batch_stats": state.batch_stats["generator"]}
    (x_hat, z, z_hat), _ = detector.generator.apply(variables, x[0], train=True, mutable=["batch_stats"])
    found["x_hat, first step"] = worst(x_hat, values["step0/fake"].transpose(0, 2, 3, 1))
    found["z, first step"] = worst(z, values["step0/latent_i"][:, :, 0, 0])
    found["z_hat, first step"] = worst(z_hat, values["step0/latent_o"][:, :, 0, 0])
    grads, _, _ = jax.jit(detector.gradients)(state, x[0])
    whole = {n: tensors(f"init/{n}/") | tensors(f"step0/grad/{n}/") for n in "GD"}
    recorded = from_pytorch(detector, whole["G"], whole["D"]).params
    for name in grads:
        errors = jax.tree.map(lambda a, b: worst(a, np.asarray(b)), grads[name], recorded[name])
        found[f"gradients of the {name}, first step"] = max(jax.tree.leaves(errors))

    update = jax.jit(detector.update)
    errors = {name: [] for name in LOSSES}
    for step in range(steps):
        state, losses = update(state, x[step])
        for ours, theirs in LOSSES.items():
            errors[ours].append(worst(losses[ours], values[f"step{step}/{theirs}"]))
    for name, of_steps in errors.items():
        found[f"{name} loss, {steps} steps"] = max(of_steps)
    if not tensors("after5/"):
        return found
    after = from_pytorch(detector, tensors("after5/G/"), tensors("after5/D/"))
    pairs = zip(jax.tree.leaves(state.batch_stats), jax.tree.leaves(after.batch_stats), strict=True)
    found[f"running statistics after {steps} steps"] = max(worst(a, np.asarray(b)) for a, b in pairs)
    score = detector.score(detector.variables(state), x[0])
    found[f"scores after {steps} steps"] = worst(score, values["eval/score"])
    return found


def main() -> int:
    """Prints the table for every file in the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=GOLDEN, help="folder of reference_*.npz")
    files = sorted(parser.parse_args().folder.glob("reference_*.npz"))
    if not files:
        print("no reference_*.npz in that folder", file=sys.stderr)
        return 2
    columns = {file.stem.removeprefix("reference_"): compare(file) for file in files}
    print(f"| quantity | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for quantity in dict.fromkeys(quantity for column in columns.values() for quantity in column):
        cells = (f"{column[quantity]:.1e}" if quantity in column else "-" for column in columns.values())
        print(f"| {quantity} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
