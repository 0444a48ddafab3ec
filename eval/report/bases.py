"""The bases of an experiment's family: verdicts are taken over all of them.

A family is an experiment and those of the same `report.family` with a brief report: the same data,
methods and questions on another base. Their committed tables of question scores are all that is
read of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merit.config import EXPERIMENTS_DIR, Experiment, load_experiment
from merit.errors import MeritError
from merit.eval.questions import QUESTIONS, read_questions
from merit.eval.results import Results
from merit.io.artifacts import REPORTS_DIR, file_hash, read_json

SUMMARY = "summary.json"  # what the pages over all experiments read of a report
BEST = Path("control", QUESTIONS)  # of a family's studies: every method at its best distance
LESSONS = {"num_conversations", "num_recaptions"}  # of `data`: only a base that is built reads them


def other_bases(experiment: Experiment) -> list[str]:
    """The experiments of other bases that have left their scores; [] for one with a brief report.

    Raises MeritError that names the file and the key where one has other data or benchmarks.
    """
    found = []
    for path in [] if experiment.report.brief else sorted(EXPERIMENTS_DIR.glob("*.yaml")):
        if not _table(REPORTS_DIR, path.stem).is_file() or path.stem == experiment.name:
            continue
        other = load_experiment(path.stem)
        if other.report.brief and other.report.family == experiment.report.family:
            for key in ("data", "evaluation"):
                one, mine = (
                    getattr(e, key).model_dump(exclude=LESSONS) for e in (other, experiment)
                )
                if one != mine:
                    raise MeritError(
                        f"{path}: key `{key}`: other than in {experiment.name}, so that the "
                        "questions are not the same; change it or remove `report.family`"
                    )
            found.append(path.stem)
    return found


def scores_hashes(experiment: Experiment) -> dict[str, list[str]]:
    """Name -> hashes of the tables that `load_bases` and `load_best` read of other bases."""
    return {
        name: [file_hash(path) for path in (_table(REPORTS_DIR, name), _best(REPORTS_DIR, name))
               if path.is_file()]
        for name in other_bases(experiment)
    }  # fmt: skip


def load_bases(
    experiment: Experiment, own: Results, base_hash: str, reports_dir: Path, others: Sequence[str]
) -> dict[str, Results]:
    """Name -> scores, the experiment's own first. Raises MeritError where two bases are one."""
    found, hashes = {experiment.name: own}, {base_hash: experiment.name}
    for name in others:
        summary = reports_dir / name / SUMMARY
        same = hashes.setdefault(read_json(summary)["base_hash"], name)
        if same != name:
            raise MeritError(f"{summary}: key `base_hash`: the base of {same}; give it a seed")
        found[name] = read_questions(_table(reports_dir, name))
    return found


def load_best(
    experiment: Experiment, reports_dir: Path, others: Sequence[str]
) -> dict[str, Results]:
    """Likewise with every method at its own best distance; {} without the study `control`."""
    planned = experiment.studies.get("control") is not None
    if not (planned and _best(reports_dir, experiment.name).is_file()):
        return {}
    names = [n for n in (experiment.name, *others) if _best(reports_dir, n).is_file()]
    return {name: read_questions(_best(reports_dir, name)) for name in names}


def _table(reports_dir: Path, name: str) -> Path:
    return reports_dir / name / QUESTIONS


def _best(reports_dir: Path, name: str) -> Path:
    return reports_dir / "studies" / name / BEST
