"""What every reported number carries: parameter hash, base hash, seeds, number of questions.

The commit is a tag of the MLflow runs: these files are the same bytes whenever they are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from merit.config import Experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.eval.report.cells import one_seed
from merit.eval.results import Results
from merit.eval.statistics import LEVEL, NUM_RESAMPLES
from merit.eval.studies import settings_of
from merit.io.artifacts import Artifacts, read_json, value_hash
from merit.io.machine import differences


@dataclass(frozen=True)
class Provenance:
    """`may_differ`: why this machine's numbers may not be those of every other (io.machine)."""

    parameter_hash: str
    base_hash: str
    studies: tuple[str, ...]
    may_differ: tuple[str, ...]

    def record(self, results: Results) -> dict[str, Any]:
        """What `provenance.json` holds."""
        return {
            "parameter_hash": self.parameter_hash,
            "base_hash": self.base_hash,
            "studies": list(self.studies),
            "may_differ": list(self.may_differ),
            "seeds": {method: list(seeds) for method, seeds in results.seeds.items()},
            "num_questions": results.num_questions,
            "interval": {
                "level": LEVEL,
                "num_resamples": NUM_RESAMPLES,
                "resampled": "seeds and questions",
                "questions_alone": one_seed(results),  # these have one seed
            },
        }


def load_provenance(experiment: Experiment, artifacts: Artifacts) -> Provenance:
    """Hash of the experiment's settings, hash of the base, and what is odd about the machine.

    Raises MeritError where the branches were trained from different bases.
    """
    hashes: dict[str, str] = {}  # of the bases -> the first branch that started there
    for branch in plan(experiment).branches:
        path = artifacts.branch(branch) / "summary.json"
        hashes.setdefault(str(read_json(path).get("base_hash")), branch)
    if len(hashes) > 1:
        first, second, *_ = hashes.values()
        raise MeritError(
            f"{artifacts.branch(second) / 'summary.json'}: key `base_hash`: another base than "
            f"{first!r} was trained from; `dvc repro` trains the outdated branch again"
        )
    return Provenance(
        parameter_hash=value_hash(experiment.model_dump(mode="json")),
        base_hash=next(iter(hashes), "") or read_json(artifacts.base / "base.json")["base_hash"],
        studies=tuple(settings_of(experiment)),
        may_differ=differences(),
    )
