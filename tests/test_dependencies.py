"""What a stage's code imports is among its dependencies, or named here with a reason.

So a result never outlives the code that made it: an import that is new, or a dependency that was
taken out of pipeline.yaml, fails here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from merit.config import load_experiment
from merit.data.sources import SOURCES
from merit.eval.studies import STUDIES
from merit.plan import STUDY_CODE, plan_rows
from merit.run.cli import STAGES
from merit.train.base_phases import INITIALISERS, PRETRAINING
from tests.test_fence import ROOT, imported

# Of every stage: words for the user, paths, and settings, whose values are dependencies themselves
EVERYWHERE = (
    *("merit/config", "merit/config/settings.py", "merit/config/rehearsal.py", "merit/plan.py"),
    *("merit/errors.py", "merit/io/progress.py", "merit/io/artifacts.py", "merit/io/locks.py"),
    "merit/io/disk.py",
)
MODULES = {stage: module for stage, (module, *_) in STAGES.items()} | {
    **{"index": "merit.eval.stages.index", "track": "merit.track"},
}
BY_NAME = {  # what a stage loads by name, so that no import tells
    "data": [place.partition(":")[0] for place in SOURCES.values()],
    "base": [place.partition(":")[0] for place in (*INITIALISERS.values(), *PRETRAINING.values())],
    "study": [f"merit.eval.studies.{path.stem}" for path in (ROOT / "eval/studies").glob("[a-z]*")],
    "report": [
        f"merit.eval.report.drawings.{p.stem}" for p in (ROOT / "eval/report/drawings").glob("*.py")
    ],
}
# experiments whose rows fill the placeholders: worlds of both kinds, files of all kinds
FILLED = (
    *("mini_vision", "mini_text", "template_text", "smollm2_reasoning"),
    *("vision_flan_3b", "vision_flan_3b_llava"),
)
ANSWERING = (
    *("answers", "batches", "generate", "lm_engine", "lm_public", "question_images", "sandbox"),
    "vllm_engine",
)
SCORING = {"eval/datasets.py", "eval/judge.py", "eval/public_datasets.py", "eval/rubric.py"}
ALLOWED = {
    # a picture's bytes as an archive has them; `encode` and `gradients`, before these, see a change
    "train": {"merit/data/parquet.py"},
    # names of adapters' tensors alone, and one that is wrong is refused
    "merge": {"merit/train/model.py", "merit/train/attention.py"},
    # that the judge has its key, that references can be read; `asking`, of the plan; varlen is not
    # for answering
    "prompts": {
        *(
            "eval/judge.py",
            "eval/rubric.py",
            "merit/config/branches.py",
            "merit/train/attention.py",
        ),
    },
    # types of results; the benchmarks' records stand in questions.json
    "evaluate": SCORING | {"eval/benchmarks.py", "eval/engine.py", "merit/data/parquet.py"},
    # from answers.py where files lie and what was stored; nothing is answered
    "score": {
        *(f"eval/answering/{name}.py" for name in ANSWERING if name[0] not in "aq"),
        *("merit/data/examples.py", "merit/data/parquet.py"),
        *("merit/train/attention.py", "merit/train/model.py"),
    },
    # which commit it was: another at every commit
    "study": {"eval/commit.py"},
    "report": {"eval/commit.py"},
    # they join finished reports; what made these has made their digests
    "index": {
        *("eval/benchmarks.py", "eval/commit.py", "eval/measuring/scores.py", "eval/paper.py"),
        *("eval/results.py", "eval/statistics.py", "eval/table_files.py"),
        *("merit/io/checkpoints.py", "merit/config/branches.py"),
    },
}


def file_of(name: str) -> Path | None:
    """The file of a module here, from its name or that of something in it."""
    path = ROOT / name.replace(".", "/")
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


@cache
def reached(path: Path) -> frozenset[Path]:
    """The files here that a file imports, inside functions too."""
    names = {part for name in imported(path) for part in (name, name.rpartition(".")[0])}
    return frozenset(file for name in names if (file := file_of(name)))


def code(stage: str) -> set[str]:
    """All files here that a stage's module leads to."""
    names = (MODULES[stage], *BY_NAME.get(stage, []))
    todo = [file for name in names if (file := file_of(name))]
    found: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += reached(file)
    return {file.relative_to(ROOT).as_posix() for file in found if file.name != "__init__.py"}


def dependencies(stage: str) -> set[str]:
    """The stage's dependencies, and what experiments fill in for their placeholders."""
    stages = {}
    for file in ("pipeline.yaml", "dvc.yaml"):
        stages |= yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"]
    found = set(stages[stage].get("do", stages[stage])["deps"])
    for rows in (plan_rows(load_experiment(x, ROOT / "experiments"), "default") for x in FILLED):
        values = {f"${{{key}}}": rows[key] for key in ("source", "reader", "builder", "world")}
        found |= {values[dep] for dep in found if dep in values}
    if stage == "study":
        found |= {f"eval/studies/{name}{'' if name in STUDY_CODE else '.py'}" for name in STUDIES}
    return found


def test_all_studies_and_drawings_are_looked_at() -> None:
    assert len(BY_NAME["study"]) == len(BY_NAME["report"]) - 1 == len(STUDIES)  # and __init__


@pytest.mark.parametrize("stage", MODULES)
def test_code_is_a_dependency(stage: str) -> None:
    known = (*dependencies(stage), *EVERYWHERE)
    missing = {
        file for file in code(stage) if not any(f"{file}/".startswith(f"{dep}/") for dep in known)
    }
    assert missing == ALLOWED.get(stage, set()), (
        f"add it to the stage's deps in pipeline.yaml, or here with a reason: {stage}"
    )


def test_every_dependency_that_is_code_is_there() -> None:
    named = {dep for stage in MODULES for dep in dependencies(stage)}
    paths = {dep for dep in named if dep.startswith(("eval/", "merit/"))}
    assert len(paths) > 50
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
