"""Settings of the studies: what the paper measures besides its main tables.

A study that an experiment's YAML does not name is not run for it. `merit.studies` says what each
one reads and whether it belongs to the default run or to `studies: full`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from merit.settings import PositiveFloat, PositiveInt, Settings


class Fidelity(Settings):
    """Strided against full gradients, and the norms of task gradients (tables 16 and 19)."""

    strides: Annotated[list[PositiveInt], Field(min_length=1)] = [2, 5, 10]
    trims: list[Annotated[float, Field(ge=0, lt=0.5)]] = [0.0, 0.05, 0.1]


class Calibration(Settings):
    """Cosine of the n-example mean gradient to the `reference`-example one (table 11)."""

    sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [
        *(50, 100, 150, 200, 250, 300, 400, 500, 700),
    ]
    reference: PositiveInt = 1000  # itself one more row
    unit: Literal["task", "family"] = "family"  # a family's tasks are pooled where tasks are small
    num_draws: PositiveInt = 3

    @model_validator(mode="after")
    def _below_reference(self) -> Calibration:
        above = [n for n in self.sizes if n >= self.reference]
        if above:
            raise ValueError(f"`sizes` must lie below `reference`, {self.reference}: found {above}")
        return self


class Connectivity(Settings):
    """Linear mode connectivity of one method's branches and merged model (table 5)."""

    method: str = "merit-2d"
    seed: int = 1
    num_points: Annotated[int, Field(ge=3)] = 21
    num_examples: PositiveInt = 512  # of the full mixture, on which the loss is measured


class Epochs(Settings):
    """Joint and merged over epochs: distance, training loss, score, perturbation (1, 6, 7).

    The i-th of `joint` and of `merged` are methods trained for the same number of epochs.
    """

    joint: Annotated[list[str], Field(min_length=1)] = ["joint-1ep", "joint-2ep", "joint-3ep"]
    merged: Annotated[list[str], Field(min_length=1)] = [
        "merit-3d",
        "merit-3d-2ep",
        "merit-3d-3ep",
    ]
    seed: int = 1
    num_examples: PositiveInt = 512  # of the full mixture, on which the loss is measured
    sigmas: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.01, 0.05, 0.1]
    num_draws: PositiveInt = 5  # random directions a sigma


class Surface(Settings):
    """Loss on the plane through the base, the joint and the merged model (figure 2)."""

    joint: str = "joint-1ep"
    method: str = "merit-3d"
    seed: int = 1
    resolution: Annotated[int, Field(ge=3)] = 21  # points a side
    num_examples: PositiveInt = 256


class Sgd(Settings):
    """Branches and joint training under SGD over a sweep of learning rates (table 18)."""

    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)]
    methods: Annotated[list[str], Field(min_length=1)] = [
        "joint-1ep",
        "merit-1d",
        "merit-2d",
        "merit-3d",
    ]
    seed: int = 1


class Hessian(Settings):
    """Conflict directions against leading Hessian eigenvectors at the base (table 21)."""

    num_examples: PositiveInt = 50  # a task
    num_steps: PositiveInt = 50  # of Lanczos
    num_eigenvectors: PositiveInt = 10
    epsilon: PositiveFloat = 0.1  # of the central differences, over a unit vector
    num_random: PositiveInt = 10_000  # Gaussian vectors behind the z-score; their cost is nothing


class Gain(Settings):
    """Merging gain by the quadratic prediction of theorem 3.1 against the measured one."""

    methods: Annotated[list[str], Field(min_length=1)] = ["merit-1d", "merit-2d", "merit-3d"]
    seed: int = 1
    shrinkages: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.1, 0.25, 0.5, 1.0]
    num_examples: PositiveInt = 256  # every branch takes a Hessian product a shrinkage


class Mergers(Settings):
    """Post-hoc mergers on one method's branches, at default and at swept scale (table 12)."""

    method: str = "merit-2d"
    seeds: Annotated[list[int], Field(min_length=1)] = [1]
    scales: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.125, 0.25, 0.5, 1.0, 2.0]


class OtherBase(Settings):
    """A second base of the regime map, which must still learn many of the mixture's skills."""

    num_new_skills: PositiveInt  # skills that it has not seen; see merit.data.world.skills
    num_conversations: PositiveInt
    num_steps: PositiveInt  # of its last phase; the others are the experiment's own


class Regime(Settings):
    """joint, shrunk joint, random and merit over learning rate x base kind.

    The learning rate of `training` is always a part of the map: its runs are the pipeline's own.
    """

    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)]
    joint: str = "joint-1ep"
    random: str = "random-8"
    method: str = "merit-3d"
    seed: int = 1
    num_random: PositiveInt = 2  # draws of random groups: one draw proves nothing
    other_base: OtherBase | None = None


class Thresholds(Settings):
    """What counts as merge-ready; all four must hold."""

    barrier_share: PositiveFloat = 0.01  # (a) of the mean loss at a path's ends
    # (b) has no threshold: every branch of a random split has a lower mixture loss than the base
    joint_displacement: PositiveFloat = 0.10  # (c) of the base's norm
    random_behind: Annotated[float, Field(ge=0)] = 1.0  # (d) points behind joint, on validation


class Readiness(Settings):
    """Is the base merge-ready? Decided by joint training and random splits alone (section 4)."""

    joint: str = "joint-1ep"
    random: str = "random-8"
    num_examples: PositiveInt = 640  # of the full mixture, on which the loss is measured
    num_points: Annotated[int, Field(ge=3)] = 5  # along every path, ends included
    thresholds: Thresholds = Thresholds()


class Weights(Settings):
    """Every method's branches merged under every reading of `merge_weights`."""

    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)] = [1, 2, 3]


class Control(Settings):
    """Every method at its own best distance from the base, and all of them at one distance.

    theta0 + c (theta - theta0), with c from `scales` chosen on validation, the same grid for all.
    """

    joint: str = "joint-1ep"
    random: str = "random-8"
    method: str = "merit-3d"
    others: list[str] = []  # further methods that get a best distance
    seeds: Annotated[list[int], Field(min_length=1)] = [1, 2, 3]
    scales: Annotated[list[PositiveFloat], Field(min_length=2)] = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    num_examples: PositiveInt = 640  # of the full mixture, on which the loss is measured


class Cost(Settings):
    """Wall-clock time of the method's steps beside joint training's (table 15)."""

    joint: str = "joint-1ep"
    methods: Annotated[list[str], Field(min_length=1)] = ["merit-1d", "merit-2d", "merit-3d"]


class Studies(Settings):
    """The studies of one experiment, by name."""

    readiness: Readiness | None = None
    weights: Weights | None = None
    control: Control | None = None
    fidelity: Fidelity | None = None
    calibration: Calibration | None = None
    connectivity: Connectivity | None = None
    epochs: Epochs | None = None
    surface: Surface | None = None
    sgd: Sgd | None = None
    hessian: Hessian | None = None
    gain: Gain | None = None
    mergers: Mergers | None = None
    regime: Regime | None = None
    cost: Cost | None = None
