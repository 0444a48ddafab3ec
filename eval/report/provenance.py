"""What every reported number carries: commit, parameter hash, seeds and number of questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from merit.config import Experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.eval.commit import git_commit
from merit.eval.report.cells import one_seed
from merit.eval.results import Results
from merit.eval.statistics import LEVEL, NUM_RESAMPLES
from merit.eval.studies import settings_of
from merit.io.artifacts import Artifacts, read_json, value_hash


@dataclass(frozen=True)
class Provenance:
    """`commit` ends in "-dirty" where a source file differed from it when the report was built."""

    commit: str
    parameter_hash: str
    base_hash: str
    studies: tuple[str, ...]

    def record(self, results: Results) -> dict[str, Any]:
        """What `provenance.json` holds."""
        return {
            "commit": self.commit,
            "parameter_hash": self.parameter_hash,
            "base_hash": self.base_hash,
            "studies": list(self.studies),
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
    """Commit of the working tree, hash of the experiment's settings, hash of the base.

    Raises MeritError where the branches were trained from different bases.
    """
    return Provenance(
        commit=git_commit(),
        parameter_hash=value_hash(experiment.model_dump(mode="json")),
        base_hash=_base_hash(experiment, artifacts),
        studies=tuple(settings_of(experiment)),
    )


def _base_hash(experiment: Experiment, artifacts: Artifacts) -> str:
    """The base that every branch started from. Raises MeritError where they differ."""
    hashes: dict[str, str] = {}
    for branch in plan(experiment).branches:
        path = artifacts.branch(branch) / "summary.json"
        hashes.setdefault(str(read_json(path).get("base_hash")), branch)
    if len(hashes) > 1:
        first, second, *_ = hashes.values()
        raise MeritError(
            f"{artifacts.branch(second) / 'summary.json'}: key `base_hash`: another base than "
            f"{first!r} was trained from; `dvc repro` trains the outdated branch again"
        )
    return next(iter(hashes), None) or read_json(artifacts.base / "base.json")["base_hash"]
