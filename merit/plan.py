"""experiments/plan.yaml: the names of all branches, models and studies that dvc.yaml loops over.

Which ones there are follows from params.yaml and the experiments; DVC cannot work that out, so
`merit plan` writes it down. The file is committed, and every stage refuses a stale one.

A stage must run again where a setting of its own has changed, a default included, and not where
another has. So the first stage, `settings`, writes each stage's settings in full to files of their
own (artifacts/<experiment>/settings/), and the stages depend on those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from merit.config import EXPERIMENTS_DIR, Experiment, Params, load_experiment, load_params
from merit.errors import MeritError
from merit.io.artifacts import (
    REPORTS_DIR,
    Artifacts,
    atomic_folder,
    atomic_write,
    report_name,
    write_json,
)
from merit.methods import Model, Plan, plan
from merit.settings import nearest

PLAN_FILE = EXPERIMENTS_DIR / "plan.yaml"
# what a stage that is run for one item loops over
LOOPED = {"train": "branches", "merge": "models", "evaluate": "models", "study": "studies"}
# the studies that are a package; the others are a file
STUDY_CODE = {name: f"eval/studies/{name}" for name in ("weights", "control")}
Row = dict[str, str]
HEADER = """\
# Written by `merit plan` from params.yaml and the experiments; not to be edited. What dvc.yaml
# loops over: a line an experiment (and base), a branch, a model, a study.
"""


# --- the names ----------------------------------------------------------------------------------


def planned_experiments(params: Params, folder: Path = EXPERIMENTS_DIR) -> list[Experiment]:
    """The experiments of params.yaml, each followed by its parts that start from other bases.

    A base from which nothing is trained at this level has no part.
    """
    found = []
    for name in params.experiments:
        experiment = load_experiment(name, folder)
        parts = [load_experiment(f"{name}-{base}", folder) for base in experiment.bases]
        used = [part for part in parts if any(m.trained for m in part.methods.values())]
        found += [experiment, *used]
    return found


def plan_rows(params: Params, experiments: list[Experiment]) -> dict[str, dict[str, Row]]:
    """The rows of plan.yaml by the list that dvc.yaml loops over, keyed by stage name."""
    rows: dict[str, dict[str, Row]] = {
        name: {} for name in ("setups", "branches", "models", "studies", "reports")
    }
    for experiment in experiments:
        x, todo = experiment.name, plan(experiment)
        stem = x.partition("-")[0]
        code = "merit/mini" if experiment.data.source.startswith("mini_") else "merit/data/sources"
        source = {"mini_world": "/world", "mini_text": "/text"}.get(experiment.data.source, "")
        built = "merit/mini/nets.py" if experiment.base.phases else "merit/training/models.py"
        rows["setups"][x] = {
            "yaml": f"{EXPERIMENTS_DIR}/{stem}.yaml",
            "source": f"{code}{source}",
            "builder": built,
        }
        for branch in todo.branches.values():
            rows["branches"][f"{x}-{branch.id}"] = {"x": x, "run": branch.run, "id": branch.id}
        for model in todo.models.values():
            rows["models"][f"{x}-{model.id}"] = {"x": x, "id": model.id} | merged_from(model, todo)
        for name, study in experiment.studies.named.items():
            reads, also = study_inputs(experiment, name, study.reads)
            rows["studies"][f"{x}-{name}"] = {
                **{"x": x, "id": name, "reads": reads, "also": also},
                "code": STUDY_CODE.get(name, f"eval/studies/{name}.py"),
            }
        if x in params.experiments:
            studies = (
                REPORTS_DIR / "studies" / x if experiment.studies.named else REPORTS_DIR / "paper"
            )
            rows["reports"][x] = {
                "folder": str(REPORTS_DIR / report_name(x, params.level)),
                "studies": str(studies),
            }
    return rows


def merged_from(model: Model, todo: Plan) -> Row:
    """The two folders that a model is made of; one of them may be a part of the other."""
    if model.rule == "shrunk":
        return {"from": f"models/{model.source}", "with": f"models/{model.match}"}
    if model.rule == "base":
        return {"from": "base", "with": "base/model.safetensors"}
    runs = {todo.branches[branch].run for branch in model.branches}
    assert len(runs) == 1  # a soup's members are all of one run: joint training's
    return {"from": f"branches/{runs.pop()}", "with": "base"}


def study_inputs(experiment: Experiment, name: str, reads: tuple[str, str]) -> tuple[str, str]:
    """The two outputs that a study depends on; the regime map's second one is another base's."""
    first, second = (Artifacts(experiment.name).folder / part for part in reads)
    bases = [b for s in experiment.sweeps.values() for b in s.bases if b in experiment.bases]
    if name == "regime" and bases:
        other = Artifacts(f"{experiment.name}-{bases[0]}")
        return str(second), str(other.evaluation / "scores.json")
    return str(first), str(second)


def render(rows: dict[str, dict[str, Row]]) -> str:
    """A line a name: the same rows are the same bytes."""
    lines = [HEADER]
    for name, entries in rows.items():
        lines.append(f"{name}:" if entries else f"{name}: {{}}")
        for key, row in entries.items():
            text = yaml.safe_dump(row, default_flow_style=True, sort_keys=False, width=10_000)
            lines.append(f"  {key}: {text.strip()}")
    return "\n".join(lines) + "\n"


def write_plan() -> bool:
    """Write experiments/plan.yaml; whether it changed."""
    params = load_params()
    text = render(plan_rows(params, planned_experiments(params)))
    before = PLAN_FILE.read_text(encoding="utf-8") if PLAN_FILE.is_file() else ""
    atomic_write(PLAN_FILE, text)
    return text != before


def check_planned(stage: str, experiment: str, item: str | None) -> None:
    """Raises MeritError where plan.yaml is stale or does not know what the stage is run for.

    Every stage asks this first.
    """
    params = load_params()
    rows = plan_rows(params, planned_experiments(params))
    if not PLAN_FILE.is_file() or PLAN_FILE.read_text(encoding="utf-8") != render(rows):
        found = "is stale" if PLAN_FILE.is_file() else "is missing"
        raise MeritError(
            f"{PLAN_FILE} {found}: params.yaml or an experiment's methods have changed; run "
            "`merit plan`, then the same command again"
        )
    if experiment not in rows["setups"]:
        known = list(rows["setups"])
        raise MeritError(
            f"{stage}: no experiment {experiment!r} in {PLAN_FILE}.{nearest(experiment, known)}"
        )
    if stage in LOOPED:
        known = [row["id"] for row in rows[LOOPED[stage]].values() if row["x"] == experiment]
        if item not in known:
            raise MeritError(
                f"{stage}: {experiment} has no {item!r} among the {LOOPED[stage]} of {PLAN_FILE}."
                f"{nearest(item or '', known)}"
            )


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
        "evaluation": dump["evaluation"],
        "report": {key: dump[key] for key in ("data", "methods", "evaluation", "report")},
    }
    for model in plan(experiment).models.values():
        files[f"models/{model.id}"] = recipe(experiment, model)
    for name in experiment.studies.named:
        # what a study computes by itself follows the settings of training and evaluation
        shared = ("gradients", "training", "merge_weights", "methods", "sweeps", "evaluation")
        readiness = dump["studies"]["readiness"] if name in ("regime", "tune") else None
        files[f"studies/{name}"] = {
            **{key: dump[key] for key in shared},
            "settings": dump["studies"][name],
            "readiness": readiness,
        }
    return files


def recipe(experiment: Experiment, model: Model) -> dict[str, Any]:
    """How a model is made: a rule, the branches or models that it takes, and their weights.

    `origin` is what its card says of the base.
    """
    base = experiment.base
    scratch = "assembled" if base.assemble else "trained from scratch"
    name = base.hub or base.checkpoint or f"{scratch}: experiments/{experiment.name}"
    return {
        "origin": {"name": name, "revision": base.revision},
        "model": model.id,
        "method": model.method,
        "seed": model.seed,
        "rule": model.rule,
        "branches": list(model.branches),
        "source": model.source,
        "match": model.match,
        "merge_weights": experiment.merge_weights,
        "merge_dtype": experiment.merge_dtype,
    }


def run(name: str, item: str | None = None) -> None:
    """The stage `settings`: write artifacts/<name>/settings: a JSON file a stage."""
    experiment = load_experiment(name)
    with atomic_folder(Artifacts(name).settings) as folder:
        for stem, values in settings_files(experiment).items():
            write_json(folder / f"{stem}.json", values)
