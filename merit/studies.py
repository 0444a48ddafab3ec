"""The table of studies: what each one reads, and when it runs.

A study's module is `eval.studies.<name>` with `measure(experiment, paths, settings)` and
`draw(result, folder)`; `eval.stages.study` runs it and writes `reports/studies/<experiment>/<name>`
(docs/formats.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from merit.config import Experiment, JointMethod, RandomMethod
from merit.io.artifacts import REPORTS_DIR, Artifacts
from merit.methods import plan

Part = Literal[
    "data",
    "base",
    "other_base",
    "encoded",
    "gradients",
    "partition",
    "branches",
    "models",
    "references",
    "scores",
]


@dataclass(frozen=True)
class Study:
    """One study. `level` "default" runs always, "full" only with `studies: full`.

    `reads` are the parts of the experiment's artifacts that it depends on; `tables` the stems of
    the paper's tables that it measures again. Numbers of a `timed` study differ from run to run:
    pages link to it and do not repeat them.
    """

    name: str
    title: str
    level: Literal["default", "full"]
    reads: tuple[Part, ...]
    tables: tuple[str, ...] = ()
    timed: bool = False


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study("readiness", "Is the base merge-ready?", "default",
              ("data", "base", "encoded", "references")),
        Study("weights", "What a merge weight counts", "default",
              ("data", "base", "branches", "partition")),
        Study("regime", "When does splitting help?", "default",
              ("data", "base", "other_base", "encoded", "partition", "branches")),
        Study("control", "Every method at its best distance", "default",
              ("data", "base", "encoded", "models")),
        Study("cost", "Wall-clock time", "default", ("branches", "models"),
              ("table15_wall_clock",), timed=True),
        Study("fidelity", "Strided gradients and their norms", "full",
              ("base", "encoded", "gradients"),
              ("table16_stride5_fidelity", "table19_gradient_norms")),
        Study("calibration", "Calibration size", "full", ("data", "base", "encoded"),
              ("table11_calibration",)),
        Study("connectivity", "Linear mode connectivity", "full",
              ("base", "encoded", "branches", "models"), ("table05_linear_mode_connectivity",)),
        Study("epochs", "Joint and merged over epochs", "full",
              ("base", "encoded", "models", "scores"), ("table01_merge_readiness",)),
        Study("surface", "Loss surface", "full", ("base", "encoded", "branches", "models")),
        Study("sgd", "SGD learning rates", "full", ("data", "base", "encoded", "partition"),
              ("table18_sgd_lr_sweep",)),
        Study("hessian", "Conflict directions and curvature", "full",
              ("base", "encoded", "gradients"), ("table21_hessian_pca_alignment",)),
        Study("gain", "Merging gain, predicted and measured", "full",
              ("base", "encoded", "branches", "models")),
        Study("mergers", "Post-hoc mergers", "full", ("data", "base", "branches", "models"),
              ("table12_posthoc_merging_7b",)),
    )
}  # fmt: skip


def active(experiment: Experiment, level: str) -> list[Study]:
    """The studies that the experiment's YAML names, at this level of `studies` in params.yaml."""
    return [
        study
        for name, study in STUDIES.items()
        if getattr(experiment.studies, name) is not None and level in ("full", study.level)
    ]


def has_other_base(experiment: Experiment) -> bool:
    """Whether the regime map asks for a second base."""
    regime = experiment.studies.regime
    return regime is not None and regime.other_base is not None


def folder(experiment: str, study: str) -> Path:
    """Where a study's result, tables and figures lie; committed to git."""
    return REPORTS_DIR / "studies" / experiment / study


def inputs(study: Study, experiment: Experiment, paths: Artifacts) -> list[Path]:
    """The artifacts behind `study.reads`."""
    planned = plan(experiment)
    # what readiness looks at: joint training and random splits, no model of ours
    references = [
        model
        for model in planned.models.values()
        if isinstance(experiment.methods[model.method], (JointMethod, RandomMethod))
    ]
    found: dict[Part, list[Path]] = {
        "data": [paths.data],
        "base": [paths.base],
        "other_base": [paths.other.folder] if has_other_base(experiment) else [],
        "encoded": [paths.encoded],
        "gradients": [paths.gradients],
        "partition": [paths.partition],
        "branches": [paths.branch(branch) for branch in planned.branches],
        "models": [paths.model(model) for model in planned.models],
        "references": [
            *(paths.branch(branch) for model in references for branch in model.branches),
            *(paths.model(model.id) for model in references),
        ],
        "scores": [paths.evaluation / "scores.json", paths.evaluation / "predictions"],
    }
    return [path for part in study.reads for path in found[part]]
