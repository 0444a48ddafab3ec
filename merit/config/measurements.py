"""The studies: what the paper measures besides its main tables, and each one's settings.

A study is a class here, a module `merit.eval.studies.<name>` that measures, and a block `studies.<name>`
in an experiment's YAML, without which it is not run.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from merit.config.settings import Level, PositiveFloat, PositiveInt, Settings


class Study(Settings):
    """What all studies share.

    `reads` are the parts of the artifacts that its numbers come from (everything upstream of them
    is implied); `tables` the stems of the paper's tables that it measures again. Numbers of a
    `timed` study differ from run to run: pages link to it and do not repeat them.
    """

    title: ClassVar[str]
    reads: ClassVar[tuple[str, str]]
    tables: ClassVar[tuple[str, ...]] = ()
    timed: ClassVar[bool] = False

    level: Level = "default"


class Fidelity(Study):
    """Strided and sketched against full gradients, and their norms (tables 16 and 19)."""

    title = "Strided gradients and their norms"
    reads = ("gradients", "encoded")
    tables = ("table16_stride5_fidelity", "table19_gradient_norms")

    strides: Annotated[list[PositiveInt], Field(min_length=1)] = [2, 5, 10]
    trims: list[Annotated[float, Field(ge=0, lt=0.5)]] = [0.0, 0.05, 0.1]
    sketch_sizes: list[PositiveInt] = [1021, 4093, 16_381, 65_537]
    num_sketches: PositiveInt = 5  # of every size, each of a seed of its own
    # of the calibration examples, with replacement: how stable the partition is in any case; every
    # one takes as long as the gradients stage
    num_resamples: Annotated[int, Field(ge=0)] = 5
    # of full gradients, tasks x parameters x 4 bytes; beyond it sketches of `reference_size` signed
    # sums (a cosine's standard error is at most 0.0005) stand for them
    max_scratch_gb: PositiveFloat = 32
    reference_size: PositiveInt = 4_194_301


class Calibration(Study):
    """Cosine of the n-example mean gradient to the `reference`-example one (table 11)."""

    title = "Calibration size"
    reads = ("base", "encoded")
    tables = ("table11_calibration",)

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


class Connectivity(Study):
    """Linear mode connectivity of one method's branches and merged model (table 5)."""

    title = "Linear mode connectivity"
    reads = ("models", "branches")
    tables = ("table05_linear_mode_connectivity",)

    method: str = "merit-2d"
    seed: int = 1
    num_points: Annotated[int, Field(ge=3)] = 21
    num_examples: PositiveInt = 512  # of the full mixture, on which the loss is measured


class Epochs(Study):
    """Joint and merged over epochs: distance, training loss, score, perturbation (1, 6, 7).

    The i-th of `joint` and of `merged` are methods trained for the same number of epochs.
    """

    title = "Joint and merged over epochs"
    reads = ("models", "evaluation/scores.json")
    tables = ("table01_merge_readiness",)

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


class Surface(Study):
    """Loss on the plane through the base, the joint and the merged model (figure 2)."""

    title = "Loss surface"
    reads = ("models", "branches")

    joint: str = "joint-1ep"
    method: str = "merit-3d"
    seed: int = 1
    resolution: Annotated[int, Field(ge=3)] = 21  # points a side
    num_examples: PositiveInt = 256


class Sgd(Study):
    """Branches and joint training under SGD over a sweep of learning rates (table 18)."""

    title = "SGD learning rates"
    reads = ("models", "evaluation/scores.json")
    tables = ("table18_sgd_lr_sweep",)

    sweep: str = "sgd"


class Tune(Study):
    """Learning rate and batch size by the rule of docs/regime.md, on the validation split.

    Joint training and random splits decide (`studies.readiness` names them): `sweeps.<sweep>` runs
    them, no MERIT model is looked at.
    """

    title = "Learning rate and batch size"
    reads = ("models", "encoded")

    level: Level = "tune"
    sweep: str = "tune"


class Hessian(Study):
    """Conflict directions against leading Hessian eigenvectors at the base (table 21)."""

    title = "Conflict directions and curvature"
    reads = ("gradients", "encoded")
    tables = ("table21_hessian_pca_alignment",)

    num_examples: PositiveInt = 50  # a task
    num_steps: PositiveInt = 50  # of Lanczos
    num_eigenvectors: PositiveInt = 10
    epsilon: PositiveFloat = 0.1  # of the central differences, over a unit vector
    num_random: PositiveInt = 10_000  # Gaussian vectors behind the z-score; their cost is nothing


class Gain(Study):
    """Merging gain by the quadratic prediction of theorem 3.1 against the measured one."""

    title = "Merging gain, predicted and measured"
    reads = ("models", "branches")

    methods: Annotated[list[str], Field(min_length=1)] = ["merit-1d", "merit-2d", "merit-3d"]
    seed: int = 1
    shrinkages: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.1, 0.25, 0.5, 1.0]
    num_examples: PositiveInt = 256  # every branch takes a Hessian product a shrinkage


class Mergers(Study):
    """Post-hoc mergers on one method's branches, at default and at swept scale (table 12)."""

    title = "Post-hoc mergers"
    reads = ("branches", "data/benchmarks")
    tables = ("table12_posthoc_merging_7b",)

    method: str = "merit-2d"
    seeds: Annotated[list[int], Field(min_length=1)] = [1]
    scales: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.125, 0.25, 0.5, 1.0, 2.0]


class Regime(Study):
    """joint, shrunk joint, random and merit over learning rate x base, as in `sweeps.<sweep>`.

    The experiment's own learning rate is always a part of the map.
    """

    title = "When does splitting help?"
    reads = ("models", "evaluation/scores.json")

    sweep: str = "regime"
    joint: str = "joint-1ep"
    random: str = "random-8"
    method: str = "merit-3d"
    shrunk: str = "joint-shrunk"


class Thresholds(Settings):
    """What counts as merge-ready; all four must hold."""

    barrier_share: PositiveFloat = 0.01  # (a) of the mean loss at a path's ends
    # (b) has no threshold: every branch of a random split has a lower mixture loss than the base
    joint_displacement: PositiveFloat = 0.10  # (c) of the base's norm
    random_behind: Annotated[float, Field(ge=0)] = 1.0  # (d) points behind joint, on validation


class Readiness(Study):
    """Is the base merge-ready? Decided by joint training and random splits alone (section 4)."""

    title = "Is the base merge-ready?"
    reads = ("models", "encoded")

    joint: str = "joint-1ep"
    random: str = "random-8"
    num_examples: PositiveInt = 640  # of the full mixture, on which the loss is measured
    num_points: Annotated[int, Field(ge=3)] = 5  # along every path, ends included
    thresholds: Thresholds = Thresholds()


class Weights(Study):
    """Every method's branches merged under every reading of `merge_weights`."""

    title = "What a merge weight counts"
    reads = ("branches", "data/benchmarks")

    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)] = [1, 2, 3]


class Control(Study):
    """Every method at its own best distance from the base, and all of them at one distance.

    theta0 + c (theta - theta0), with c from `scales` chosen on validation, the same grid for all.
    """

    title = "Every method at its best distance"
    reads = ("models", "encoded")

    joint: str = "joint-1ep"
    random: str = "random-8"
    method: str = "merit-3d"
    others: list[str] = []  # further methods that get a best distance
    seeds: Annotated[list[int], Field(min_length=1)] = [1, 2, 3]
    scales: Annotated[list[PositiveFloat], Field(min_length=2)] = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    num_examples: PositiveInt = 640  # of the full mixture, on which the loss is measured


class Cost(Study):
    """Wall-clock time of the method's steps beside joint training's (table 15)."""

    title = "Wall-clock time"
    reads = ("branches", "models")
    tables = ("table15_wall_clock",)
    timed = True

    joint: str = "joint-1ep"
    methods: Annotated[list[str], Field(min_length=1)] = ["merit-1d", "merit-2d", "merit-3d"]


class Overlap(Study):
    """Which benchmark questions and images stand in the training data as well.

    The experiment's own benchmarks, or `files`: a benchmark's TSV or JSONL file each, with
    environment variables (`$LMUData/x.tsv`). Without `images` no image is opened.
    """

    title = "Training data and benchmarks"
    reads = ("data/mixture", "evaluation/questions")

    files: dict[str, str] = {}
    images: bool = True


class HeldOut(Study):
    """Every model's loss on each task's held-out examples (`data.held_out`): for own mixtures."""

    title = "Loss on held-out examples"
    reads = ("models", "data/held_out")

    num_examples: PositiveInt = 200  # at most, a task
    batch_size: PositiveInt = 8


class Retention(Study):
    """Every model's loss on the base's own answers to everyday prompts, and the length of its own.

    For bases that chat: what fine-tuning on other things takes from them.
    """

    title = "What is kept of the base"
    reads = ("models", "base")

    max_new_tokens: PositiveInt = 96
    batch_size: PositiveInt = 24


class Studies(Settings):
    """The studies of one experiment, by name, in the order of the pages."""

    readiness: Readiness | None = None
    weights: Weights | None = None
    regime: Regime | None = None
    control: Control | None = None
    cost: Cost | None = None
    fidelity: Fidelity | None = None
    calibration: Calibration | None = None
    connectivity: Connectivity | None = None
    epochs: Epochs | None = None
    surface: Surface | None = None
    sgd: Sgd | None = None
    hessian: Hessian | None = None
    gain: Gain | None = None
    mergers: Mergers | None = None
    tune: Tune | None = None
    overlap: Overlap | None = None
    held_out: HeldOut | None = None
    retention: Retention | None = None

    @property
    def named(self) -> dict[str, Study]:
        """Those that the YAML names."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: study for name, study in found.items() if study is not None}

    def at(self, levels: Collection[Level]) -> Studies:
        """Those of these levels alone."""
        chosen = {n: s if s is not None and s.level in levels else None for n, s in self}
        return self.model_copy(update=chosen)


STUDIES: dict[str, type[Study]] = {
    name: get_args(field.annotation)[0] for name, field in Studies.model_fields.items()
}
