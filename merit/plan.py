"""experiments/<x>/plan.yaml: the names of the branches, models and studies that an experiment has.

Which ones there are follows from params.yaml and experiments/<x>.yaml; DVC cannot work that out, so
`merit plan` writes it down, beside the link to pipeline.yaml that makes the folder a DVC pipeline.
Both are committed, and every stage refuses a stale plan.

A stage must run again where a setting of its own has changed, a default included, and not where
another has. So the first stage, `settings`, writes each stage's settings in full to files of their
own (artifacts/<experiment>/settings/), and the stages depend on those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from merit.config import EXPERIMENTS_DIR, Base, Experiment, Params, load_experiment, load_params
from merit.config.branches import Model, Plan, plan
from merit.config.settings import nearest
from merit.errors import MeritError
from merit.eval.studies import settings_of
from merit.io.artifacts import (
    REPORTS_DIR,
    Artifacts,
    atomic_folder,
    atomic_write,
    write_json,
)
from merit.merge.model import recipe

PIPELINE, PLAN = "dvc.yaml", "plan.yaml"  # of every experiment's folder
SHARED_PIPELINE = Path("pipeline.yaml")
# what a stage that is run for one item loops over
LOOPED = {"train": "branches", "merge": "models", "evaluate": "models", "study": "studies"}
# the studies that are a package; the others are a file
STUDY_CODE = {name: f"eval/studies/{name}" for name in ("weights", "control", "retention")}
# what writes an experiment's own questions, beside its mixture
GENERATED = {
    "mini_world": "merit/mini/world",
    "mini_text": "merit/mini/text",
    "reasoning_gym": "merit/data/sources/reasoning.py",
}
SELF_TAUGHT = "labels"  # the base phase that makes its examples itself (merit.train.base_phases)
SCORING = ("judge", "check_files")  # of `evaluation`: what decides neither questions nor answers
Row = dict[str, str]
HEADER = """\
# Written by `merit plan` from params.yaml and {yaml}; not to be edited. What
# pipeline.yaml reads here: the experiment, its branches, models, studies and report.
"""


# --- the names ----------------------------------------------------------------------------------


def planned_experiments(params: Params, folder: Path = EXPERIMENTS_DIR) -> list[Experiment]:
    """The experiments of params.yaml, each followed by those whose results it reads."""
    return [part for name in params.experiments for part in with_parts(name, folder)]


def with_parts(name: str, folder: Path = EXPERIMENTS_DIR) -> list[Experiment]:
    """An experiment and those whose results it reads."""
    experiment = load_experiment(name, folder)
    return [experiment, *(load_experiment(other, folder) for other in experiment.reads)]


def plan_rows(experiment: Experiment) -> dict[str, Any]:
    """What pipeline.yaml reads of an experiment: four names, and a row a stage that is looped."""
    x, todo = experiment.name, plan(experiment)
    source, reader = data_code(experiment)
    studies = {}
    for name, study in settings_of(experiment).items():
        reads, also = study_inputs(experiment, name, study.reads)
        code_of_study = STUDY_CODE.get(name, f"eval/studies/{name}.py")
        studies[name] = {"reads": reads, "also": also, "code": code_of_study}
    folder = REPORTS_DIR / "studies" / x if studies else REPORTS_DIR / "paper"
    report = {"folder": str(REPORTS_DIR / x), "studies": str(folder)}
    return {
        "x": x,
        "yaml": f"{EXPERIMENTS_DIR}/{x}.yaml",
        "source": source,
        "reader": reader,
        "builder": builder(experiment.base),
        "world": world(experiment.base),
        # what a base learns from and what models are asked, where the data stage writes them
        "lessons": f"artifacts/{x}/data/pretraining"
        if experiment.base.phases
        else "merit/errors.py",
        "questions": f"artifacts/{x}/data/benchmarks"
        if experiment.data.source in GENERATED
        else "merit/errors.py",
        "branches": {branch.id: {"run": branch.run} for branch in todo.branches.values()},
        "models": {model.id: merged_from(model, todo) for model in todo.models.values()},
        "studies": studies,
        "reports": {"default": report},
    }


def data_code(experiment: Experiment) -> tuple[str, str]:
    """What the examples come from, and the code that brings them into the canonical form."""
    data = experiment.data
    if data.source in GENERATED:
        alone = data.source.startswith("mini_")  # a world needs nothing of what reads real data
        return GENERATED[data.source], "merit/data/examples.py" if alone else "merit/data"
    return data.folder if data.source == "jsonl" else "merit/data/sources", "merit/data"


def builder(base: Base) -> str:
    """Where a base's first tensors come from: code, or the user's own folder or file."""
    if base.architecture is not None:
        return "merit/mini/nets.py"
    if base.assemble is not None:
        return "merit/train/assembly.py"
    if base.checkpoint is None:
        return "merit/data/hub.py"
    return "merit/train/gguf.py" if base.checkpoint.startswith("package:") else base.checkpoint


def world(base: Base) -> str:
    """What a base takes from a miniature world besides lessons: its words, or drawn scenes."""
    if any(phase.data == SELF_TAUGHT for phase in base.phases):
        return "merit/mini/world"
    if base.architecture is None:
        return "merit/__init__.py"  # nothing: a file that hardly ever changes
    return f"merit/mini/{'world' if base.architecture.has_vision else 'text'}/vocabulary.txt"


def merged_from(model: Model, todo: Plan) -> Row:
    """The two folders that a model is made of; one of them may be a part of the other."""
    if model.rule == "shrunk":
        return {"from": f"models/{model.source}", "with": f"models/{model.match}"}
    if model.rule == "base":
        return {"from": "base", "with": "base/base.json"}
    runs = {todo.branches[branch].run for branch in model.branches}
    assert len(runs) == 1  # a soup's members are all of one run: joint training's
    return {"from": f"branches/{runs.pop()}", "with": "base"}


def study_inputs(experiment: Experiment, name: str, reads: tuple[str, str]) -> tuple[str, str]:
    """The two outputs that a study depends on; the regime map's second one is another base's."""
    first, second = (Artifacts(experiment.name).folder / part for part in reads)
    if name == "regime" and experiment.reads:
        other = Artifacts(experiment.reads[0])
        return str(second), str(other.evaluation / "scores.json")
    return str(first), str(second)


# --- the files ----------------------------------------------------------------------------------


def folder_of(x: str) -> Path:
    """The folder of an experiment's pipeline: dvc.yaml, plan.yaml, dvc.lock."""
    return EXPERIMENTS_DIR / x


def render(rows: dict[str, Any]) -> str:
    """A line a name: the same rows are the same bytes."""
    lines = [HEADER.format(yaml=rows["yaml"])]
    for name, entries in rows.items():
        if isinstance(entries, str):
            lines.append(f"{name}: {entries}")
            continue
        lines.append(f"{name}:" if entries else f"{name}: {{}}")
        for key, row in entries.items():
            text = yaml.safe_dump(row, default_flow_style=True, sort_keys=False, width=10_000)
            lines.append(f"  {key}: {text.strip()}")
    return "\n".join(lines) + "\n"


def write_plan() -> list[Path]:
    """Make the folder of every planned experiment a DVC pipeline; the plans that changed.

    A folder whose experiment is not planned any more is none from then on; its dvc.lock stays, so
    that its results come back from DVC's cache if it is planned again.
    """
    params = load_params()
    found = {e.name: render(plan_rows(e)) for e in planned_experiments(params)}
    changed = []
    for path in sorted(folder / PIPELINE for folder in EXPERIMENTS_DIR.iterdir()):
        if path.is_symlink() and path.parent.name not in found:
            path.unlink()
            path.with_name(PLAN).unlink(missing_ok=True)
            changed.append(path.with_name(PLAN))
    for x, text in found.items():
        path, link = folder_of(x) / PLAN, folder_of(x) / PIPELINE
        if not is_written(path, text):
            atomic_write(path, text)
            changed.append(path)
        if not link.is_symlink():
            link.unlink(missing_ok=True)
            link.symlink_to(Path("../..") / SHARED_PIPELINE)
    return changed


def is_written(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def check_planned(stage: str, name: str, item: str | None) -> None:
    """Raises MeritError where the experiment's plan is stale or does not know what the stage is
    run for.

    Every stage asks this first. Of other experiments nothing is read.
    """
    params = load_params()
    # a rehearsal is named in params.yaml itself, a part of an experiment is not
    planned = name if name in params.experiments else name.removesuffix("_weak")
    if planned not in params.experiments:
        raise MeritError(
            f"{stage}: no experiment {planned!r} in params.yaml."
            f"{nearest(planned, params.experiments)} Where it was taken out, run `merit plan`"
        )
    parts = {part.name: part for part in with_parts(planned)}
    if name not in parts:
        raise MeritError(f"{stage}: {planned} reads no {name!r}.{nearest(name, list(parts))}")
    rows = plan_rows(parts[name])
    check_fresh(name, rows)
    if stage in LOOPED and item not in rows[LOOPED[stage]]:
        raise MeritError(
            f"{stage}: {name} has no {item!r} among the {LOOPED[stage]} of "
            f"{folder_of(name) / PLAN}.{nearest(item or '', list(rows[LOOPED[stage]]))}"
        )


def check_fresh(name: str, rows: dict[str, Any]) -> None:
    """Raises MeritError where the experiment's plan.yaml does not hold these rows."""
    path = folder_of(name) / PLAN
    if not is_written(path, render(rows)):
        raise MeritError(
            f"{path} {'is stale' if path.is_file() else 'is missing'}: params.yaml or the "
            "experiment's methods have changed; run `merit plan`, then the same command again"
        )


def check_plans() -> None:
    """Raises MeritError where `merit plan` would change anything: for what spans experiments."""
    params = load_params()
    for experiment in planned_experiments(params):
        check_fresh(experiment.name, plan_rows(experiment))


# --- the settings, stage by stage -----------------------------------------------------------------


def settings_files(experiment: Experiment) -> dict[str, Any]:
    """{file stem: what the stage of that name depends on}, every default filled in.

    A model's recipe (models/<id>) says what is merged how: a stage that reads it reads no YAML.
    """
    dump = experiment.model_dump(mode="json")
    trainable = experiment.training.trainable
    files: dict[str, Any] = {
        "data": dump["data"],
        "base": {key: dump[key] for key in ("base", "model", "encoding")},
        "encode": {key: dump[key] for key in ("model", "encoding")},
        "gradients": dump["gradients"] | {"trainable": trainable, "model": dump["model"]},
        "partition": {
            key: dump[key] for key in ("methods", "sweeps", "training", "model", "encoding")
        },
        "evaluation": asking(experiment),
        "scoring": {key: dump["evaluation"][key] for key in ("benchmarks", *SCORING)},
        "report": {key: dump[key] for key in ("data", "methods", "evaluation", "report")},
    }
    for model in plan(experiment).models.values():
        files[f"models/{model.id}"] = recipe(experiment, model)
    for name, settings in settings_of(experiment).items():
        # what a study computes by itself follows the settings of training and evaluation
        shared = ("model", "gradients", "training", "merge_weights", "methods", "sweeps")
        readiness = dump["studies"].get("readiness") if name == "regime" else None
        files[f"studies/{name}"] = {
            **{key: dump[key] for key in (*shared, "evaluation")},
            "settings": settings.model_dump(mode="json"),
            "readiness": readiness,
        }
    return files


def asking(experiment: Experiment) -> dict[str, Any]:
    """What decides questions and answers: `evaluation` without its judge, and how models are run.

    So another judge scores the answers that there are.
    """
    asked = experiment.evaluation.model_dump(mode="json", exclude=set(SCORING))
    return {"evaluation": asked, "model": experiment.model.model_dump(mode="json")}


def run(name: str, item: str | None = None) -> None:
    """The stage `settings`: write artifacts/<name>/settings: a JSON file a stage."""
    experiment = load_experiment(name)
    with atomic_folder(Artifacts(name).settings) as folder:
        for stem, values in settings_files(experiment).items():
            write_json(folder / f"{stem}.json", values)
