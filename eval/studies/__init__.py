"""The studies: what the paper measures besides its main tables.

A study is a folder here: its settings (the block `studies.<name>` of an experiment's YAML, without
which it is not run), measure.py (numbers), draw.py (figures) and text.md.j2 (sentences); a `timed`
one has only tables. To add one, add its folder and its line in `STUDIES`. Importing this module
takes milliseconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from pydantic import create_model

from merit.config import EXPERIMENTS_DIR, Experiment
from merit.config.settings import Settings, checked
from merit.errors import MeritError
from merit.eval.studies.calibration import Calibration
from merit.eval.studies.connectivity import Connectivity
from merit.eval.studies.control import Control
from merit.eval.studies.cost import Cost
from merit.eval.studies.epochs import Epochs
from merit.eval.studies.fidelity import Fidelity
from merit.eval.studies.gain import Gain
from merit.eval.studies.held_out import HeldOut
from merit.eval.studies.hessian import Hessian
from merit.eval.studies.mergers import Mergers
from merit.eval.studies.overlap import Overlap
from merit.eval.studies.readiness import Readiness
from merit.eval.studies.regime import Regime
from merit.eval.studies.retention import Retention
from merit.eval.studies.sgd import Sgd
from merit.eval.studies.study import Study
from merit.eval.studies.surface import Surface
from merit.eval.studies.weights import Weights

STUDIES: dict[str, type[Study]] = {  # in the order of the pages
    "readiness": Readiness,
    "weights": Weights,
    "regime": Regime,
    "control": Control,
    "cost": Cost,
    "fidelity": Fidelity,
    "calibration": Calibration,
    "connectivity": Connectivity,
    "epochs": Epochs,
    "surface": Surface,
    "sgd": Sgd,
    "hessian": Hessian,
    "gain": Gain,
    "mergers": Mergers,
    "overlap": Overlap,
    "held_out": HeldOut,
    "retention": Retention,
}

_FIELDS: dict[str, Any] = {name: (kind | None, None) for name, kind in STUDIES.items()}
_Studies: Any = create_model("_Studies", __base__=Settings, **_FIELDS)
_Part: Any = create_model("_Part", __base__=Settings, studies=(_Studies, ...))


def settings_of(experiment: Experiment) -> dict[str, Study]:
    """The settings of the experiment's studies, by name, in the order of the pages.

    Raises MeritError, one line per mistake, that names the file and the key.
    """
    path = EXPERIMENTS_DIR / f"{experiment.name}.yaml"
    found = checked({"studies": experiment.studies}, _Part, path).studies
    wanted = {name: study for name, study in found if study is not None}
    for name, study in wanted.items():
        if not (experiment.evaluation.benchmarks or study.without_benchmarks):
            raise MeritError(f"{path}: key `studies.{name}`: needs `evaluation.benchmarks`")
    return wanted


def reported(experiment: Experiment) -> list[str]:
    """The experiment's studies whose numbers are the same in every run."""
    return [name for name in settings_of(experiment) if not STUDIES[name].timed]


def measure_of(name: str) -> Callable[..., dict[str, Any]]:
    """The study's function measure(experiment, paths, settings) -> result; most need torch."""
    return importlib.import_module(f"{__name__}.{name}.measure").measure


def draw_of(name: str) -> Callable[..., Any]:
    """The study's function draw(result), which returns its figures by name."""
    return importlib.import_module(f"{__name__}.{name}.draw").draw
