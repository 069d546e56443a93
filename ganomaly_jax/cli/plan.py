"""The verb `plan`: tells what a training would cost."""

from __future__ import annotations

import argparse
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes, members, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import show


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "plan", "estimate the cost of a training: parameters, FLOPs, memory, the largest batch"
    )
    arguments.add_data(parser, "data to take the sizes from; the same as --data")
    arguments.add_config(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Prints the estimated cost of the training and returns the exit code."""
    settings = arguments.settings(args, overrides)
    validation.check(settings)
    from ganomaly_jax.data import modalities, sources
    from ganomaly_jax.parallel import sharding
    from ganomaly_jax.runs import resolution, sweep
    from ganomaly_jax.training import cost

    if members.requested(settings):
        if not settings.data.source:
            raise UserError("members are counted from the data: expected `ganomaly plan DATA`")
        dataset = sources.read(settings.data, progress=True)
        team = sweep.expand(settings, dataset)
        member = resolution.resolve_checked(sweep.member_config(settings, team[0]), dataset)
        devices = sharding.member_mesh(len(team), settings.mesh.devices).size
        show(cost.describe(cost.plan(member.config)))
        show(cost.describe_members(member.detector, len(team), devices, dataset.images.nbytes))
        return exit_codes.DONE
    mesh = sharding.local_mesh(settings.mesh.devices)
    if 0 in modalities.of(settings.data).network_shape(settings.data) and settings.data.source:
        settings = resolution.resolve_checked(settings, devices=mesh.size, progress=True).config
    sharding.check_batch_size(settings.train.batch_size, mesh)
    show(cost.describe(cost.plan(settings, mesh.size)))
    return exit_codes.DONE
