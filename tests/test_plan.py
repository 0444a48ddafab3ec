"""An experiment's plan.yaml and its stages' settings: what is to run, and on what it depends."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from merit import plan as planning
from merit.config import (
    Base,
    Encoding,
    Evaluation,
    Experiment,
    Gradients,
    Method,
    MiniWorldData,
    Optimizer,
    Runtime,
    Sweep,
    Training,
    load_experiment,
    load_params,
)
from merit.errors import MeritError
from merit.eval.studies import STUDIES as STUDY_SETTINGS
from merit.io.artifacts import Artifacts, read_json
from merit.plan import (
    SELF_TAUGHT,
    check_planned,
    check_plans,
    folder_of,
    plan_rows,
    planned_experiments,
    render,
    settings_files,
    write_plan,
)
from merit.train.base_phases import PRETRAINING
from tests import synthetic

ROOT = Path(__file__).parent.parent
PLAN = folder_of("tiny") / "plan.yaml"


def values() -> dict[str, Any]:
    """Three methods, their control, a sweep on two bases and two studies."""
    found = synthetic.experiment("tiny").model_dump(mode="json")
    phase = {"name": "stage 1", "data": "captions", "trainable": ["decoder"], "num_steps": 2}
    phase["optimizer"] = {"learning_rate": 1e-3, "batch_size": 4}
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    architecture = {size: 8 for size in sizes} | {"num_key_value_heads": 8}
    found["base"] = {
        **{"architecture": architecture | {"initializer_range": 0.1}, "phases": [phase]},
    }
    found["bases"] = {"weak": {"data": {"seed": 9}}}
    found["methods"] = {
        "base": {"partition": "base"},
        "joint-1ep": {"partition": "joint", "seeds": [1, 2]},
        "soup-2": {"partition": "soup", "members": 2},
        "merit-1d": {"partition": "merit", "axes": 1},
        "joint-shrunk": {"partition": "shrunk", "source": "joint-1ep", "match": "merit-1d"},
    }
    found["sweeps"] = {
        "regime": {"methods": ["joint-1ep"], "learning_rate": [0.5], "bases": ["main", "weak"]}
    }
    found["report"] |= {"curves": [], "partition": None}
    found["studies"] = {"regime": {}, "gain": {}, "weights": {"methods": ["merit-1d"]}}
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one experiment and its plan."""
    monkeypatch.chdir(tmp_path)
    write(values())
    Path("params.yaml").write_text("experiments: [tiny]\n", encoding="utf-8")
    write_plan()
    return tmp_path


def write(experiment: dict[str, Any]) -> None:
    Path("experiments").mkdir(exist_ok=True)
    Path("experiments/tiny.yaml").write_text(
        yaml.safe_dump(experiment, sort_keys=False), encoding="utf-8"
    )


def rows() -> dict[str, dict[str, Any]]:
    """{experiment or part: what its plan is to hold}"""
    params = load_params()
    return {e.name: plan_rows(e, params.level) for e in planned_experiments(params)}


# --- the names ----------------------------------------------------------------------------------


def read(x: str) -> dict[str, str]:
    data = f"artifacts/{x}/data"
    return {"lessons": f"{data}/pretraining", "questions": f"{data}/benchmarks"}


def test_the_rows_of_a_small_experiment_by_hand(folder: Path) -> None:
    found = rows()
    names = {"yaml": "experiments/tiny.yaml", "source": "merit/mini/world"}
    names |= {"reader": "merit/data/examples.py", "builder": "merit/mini/nets.py"}
    names["world"] = "merit/mini/text/vocabulary.txt"
    scores = "evaluation/scores.json"
    weak = {
        **{"x": "tiny-weak", **names, **read("tiny-weak")},
        "branches": {"joint-1ep-lr0.5-s1": {"run": "joint-1ep-lr0.5"}},
        "models": {
            "base": {"from": "base", "with": "base/base.json"},
            "joint-1ep-lr0.5-s1": {"from": "branches/joint-1ep-lr0.5", "with": "base"},
        },
        **{"studies": {}, "reports": {}},
    }
    tiny = {
        **{"x": "tiny", **names, **read("tiny")},
        "branches": {
            "joint-1ep-s1": {"run": "joint-1ep"},  # the soup's members are these
            "joint-1ep-s2": {"run": "joint-1ep"},
            "merit-1d-s1-g0": {"run": "merit-1d-s1"},
            "merit-1d-s1-g1": {"run": "merit-1d-s1"},
            "joint-1ep-lr0.5-s1": {"run": "joint-1ep-lr0.5"},
        },
        "models": {
            "base": {"from": "base", "with": "base/base.json"},
            "joint-1ep-s1": {"from": "branches/joint-1ep", "with": "base"},
            "joint-1ep-s2": {"from": "branches/joint-1ep", "with": "base"},
            "soup-2-s1": {"from": "branches/joint-1ep", "with": "base"},
            "merit-1d-s1": {"from": "branches/merit-1d-s1", "with": "base"},
            "joint-shrunk-s1": {"from": "models/joint-1ep-s1", "with": "models/merit-1d-s1"},
            "joint-1ep-lr0.5-s1": {"from": "branches/joint-1ep-lr0.5", "with": "base"},
        },
        "studies": {
            "weights": {
                **{"reads": "artifacts/tiny/branches", "also": "artifacts/tiny/data/benchmarks"},
                "code": "eval/studies/weights",
            },
            # of the other base it needs the scores alone
            "regime": {
                **{"reads": f"artifacts/tiny/{scores}", "also": f"artifacts/tiny-weak/{scores}"},
                "code": "eval/studies/regime/measure.py",
            },
            "gain": {
                **{"reads": "artifacts/tiny/models", "also": "artifacts/tiny/branches"},
                "code": "eval/studies/gain/measure.py",
            },
        },
        "reports": {"default": {"folder": "reports/tiny", "studies": "reports/studies/tiny"}},
    }
    assert found == {"tiny": tiny, "tiny-weak": weak}
    assert list(found["tiny"]["models"]) == list(tiny["models"])  # in the order of the methods


BERT = {"hub": "a/b", "revision": "c0ffee"}


@pytest.mark.parametrize(
    ("base", "code"),
    [
        ({"checkpoint": "bases/mine"}, "bases/mine"),
        ({"checkpoint": "bases/mine.gguf"}, "bases/mine.gguf"),
        ({"checkpoint": "package:tiny/model.gguf"}, "merit/train/gguf.py"),
        (BERT, "merit/data/hub.py"),
        (
            {"assemble": {"vision": BERT, "decoder": {"checkpoint": "here"}}},
            "merit/train/assembly.py",
        ),
    ],
)
def test_a_finished_base_depends_on_where_it_comes_from(base: dict[str, Any], code: str) -> None:
    found = plan_rows(synthetic.experiment().model_copy(update={"base": Base(**base)}), "default")
    assert found["builder"] == code
    assert found["world"] == "merit/__init__.py"  # of no miniature world


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("mini_vision", ("merit/mini/world", "merit/data/examples.py", "merit/mini/world")),
        ("mini_text", ("merit/mini/text", "merit/data/examples.py", "merit/mini/text/vocabulary")),
        ("template_text", ("own/mixture", "merit/data", "merit/__init__.py")),
        ("vision_flan_3b", ("merit/data/sources", "merit/data", "merit/__init__.py")),
    ],
)
def test_what_data_and_base_are_made_of(
    source: str, rows: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = plan_rows(load_experiment(source), "default")
    assert (found["source"], found["reader"], found["world"].removesuffix(".txt")) == rows
    asks = source.startswith("mini_")
    expected = f"artifacts/{source}/data/benchmarks" if asks else "merit/errors.py"
    assert found["questions"] == expected


def test_a_base_that_teaches_itself_is_known_by_its_phase() -> None:
    assert list(PRETRAINING) == [SELF_TAUGHT]


def test_a_full_report_leaves_the_default_one_alone(folder: Path) -> None:
    full = plan_rows(load_experiment("tiny"), "full")
    assert {key: row["folder"] for key, row in full["reports"].items()} == {
        "full": "reports/tiny-full"
    }


def test_without_studies_a_report_depends_on_none(folder: Path) -> None:
    write(values() | {"studies": {}})
    found = rows()["tiny"]
    assert found["studies"] == {}
    assert found["reports"]["default"]["studies"] == "reports/paper"
    assert "\nstudies: {}\n" in render(found)


def test_a_base_that_nothing_starts_from_is_not_built(folder: Path) -> None:
    """A sweep may ask for it, or a method."""
    changed = values() | {"sweeps": {}, "studies": {}}
    write(changed)
    assert list(rows()) == ["tiny"]
    changed["methods"]["joint-weak"] = {"partition": "joint", "base": "weak"}
    write(changed)
    assert list(rows()) == ["tiny", "tiny-weak"]
    assert "joint-1ep-s1" in rows()["tiny-weak"]["branches"]
    assert "joint-weak-s1" in rows()["tiny-weak"]["models"]
    assert "joint-weak-s1" not in rows()["tiny"]["models"]


def test_the_plan_is_a_line_a_name_and_the_same_bytes_every_time(folder: Path) -> None:
    found = rows()["tiny"]
    text = PLAN.read_text(encoding="utf-8")
    assert text == render(found) == render(copy.deepcopy(found))
    assert yaml.safe_load(text) == found
    assert text.splitlines()[2:13] == [
        *("", "x: tiny", "yaml: experiments/tiny.yaml", "source: merit/mini/world"),
        *("reader: merit/data/examples.py", "builder: merit/mini/nets.py"),
        "world: merit/mini/text/vocabulary.txt",  # its base has no vision part
        "lessons: artifacts/tiny/data/pretraining",
        *("questions: artifacts/tiny/data/benchmarks", "branches:"),
        "  joint-1ep-s1: {run: joint-1ep}",
    ]
    names = sum(len(entries) for entries in found.values() if isinstance(entries, dict))
    assert len(text.splitlines()) == 3 + len(found) + names
    assert write_plan() == []  # it changed nothing
    write(values() | {"merge_weights": "uniform"})
    assert write_plan() == []  # no name is another


def test_a_folder_is_a_pipeline_as_long_as_it_is_planned(folder: Path) -> None:
    link, weak = PLAN.with_name("dvc.yaml"), Path("experiments/tiny-weak")
    assert link.readlink() == weak.joinpath("dvc.yaml").readlink() == Path("../../pipeline.yaml")
    weak.joinpath("dvc.lock").touch()
    Path("experiments/mine").mkdir()
    Path("experiments/mine/dvc.yaml").touch()  # a user's own pipeline
    write(values() | {"sweeps": {}})
    assert write_plan() == [weak / "plan.yaml", PLAN]
    assert [path.name for path in weak.iterdir()] == ["dvc.lock"]
    assert Path("experiments/mine/dvc.yaml").exists()
    assert write_plan() == []
    link.unlink()
    write_plan()
    assert link.is_symlink()


def test_the_committed_plans_and_links_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_plans()
    for x in rows():
        assert folder_of(x).joinpath("dvc.yaml").resolve() == ROOT / "pipeline.yaml"
    assert {path.parent.name for path in Path("experiments").glob("*/dvc.yaml")} == set(rows())


def test_every_placeholder_of_the_pipeline_is_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """pipeline.yaml loops over the plan's lists and reads nothing that is not there."""
    monkeypatch.chdir(ROOT)
    pipeline = yaml.safe_load(Path("pipeline.yaml").read_text(encoding="utf-8"))
    assert pipeline["vars"] == ["plan.yaml"]
    lists = {}
    for found in rows().values():
        names = {key for key, value in found.items() if isinstance(value, str)}
        for name, stage in pipeline["stages"].items():
            wanted = {part.split("}")[0] for part in json.dumps(stage).split("${")[1:]}
            each: dict[str, Any] = {"": {}}  # what it loops over: one turn where it does not
            if "foreach" in stage:
                lists[name] = stage["foreach"].removeprefix("${").removesuffix("}")
                wanted -= {lists[name], "key"}
                each = found[lists[name]]
            for row in each.values():
                assert wanted - names <= {f"item.{key}" for key in row}, name
    assert {stage: lists[stage] for stage in planning.LOOPED} == planning.LOOPED


# --- refusals -----------------------------------------------------------------------------------

STALE = (
    ": params.yaml or the experiment's methods have changed; run `merit plan`, then the same "
    "command again"
)


def refused(*arguments: Any) -> str:
    with pytest.raises(MeritError) as caught:
        check_planned(*arguments)
    return str(caught.value)


def test_a_stale_or_missing_plan_is_refused(folder: Path) -> None:
    check_planned("data", "tiny", None)
    write(values() | {"sweeps": {}})
    assert refused("data", "tiny", None) == f"experiments/tiny/plan.yaml is stale{STALE}"
    with pytest.raises(MeritError, match=r"^experiments/tiny/plan\.yaml is stale: "):
        check_plans()
    write_plan()
    check_planned("data", "tiny", None)
    check_plans()
    PLAN.unlink()
    assert refused("data", "tiny", None) == f"experiments/tiny/plan.yaml is missing{STALE}"


def test_a_setting_that_changes_no_name_leaves_the_plan_as_it_is(folder: Path) -> None:
    write(values() | {"merge_weights": "uniform"})
    check_planned("merge", "tiny", "merit-1d-s1")


def test_an_unknown_experiment_or_item_is_refused_with_the_nearest(folder: Path) -> None:
    assert refused("data", "tinny", None) == (
        "data: no experiment 'tinny' in params.yaml. Did you mean `tiny`? Where it was taken out, "
        "run `merit plan`"
    )
    assert refused("train", "tiny", "merit-1d-s1-g2") == (
        "train: tiny has no 'merit-1d-s1-g2' among the branches of experiments/tiny/plan.yaml. "
        "Did you mean `merit-1d-s1-g1`?"
    )
    for stage in ("merge", "evaluate"):
        assert refused(stage, "tiny", "soup-3-s1") == (
            f"{stage}: tiny has no 'soup-3-s1' among the models of experiments/tiny/plan.yaml. "
            "Did you mean `soup-2-s1`?"
        )
    assert refused("study", "tiny", "xyz") == (
        "study: tiny has no 'xyz' among the studies of experiments/tiny/plan.yaml. "
        "Known here: weights, regime, gain."
    )
    # what one base has is no item of another
    assert "tiny-weak has no 'merit-1d-s1' among" in refused("merge", "tiny-weak", "merit-1d-s1")
    check_planned("merge", "tiny-weak", "joint-1ep-lr0.5-s1")
    assert refused("merge", "tiny-week", "base") == (
        "merge: nothing is trained from the base of 'tiny-week' at the level 'default'. Did you "
        "mean `tiny-weak`?"
    )


def test_another_experiments_mistake_stops_only_what_spans_experiments(folder: Path) -> None:
    Path("params.yaml").write_text("experiments: [tiny, other]\n", encoding="utf-8")
    check_planned("data", "tiny", None)
    with pytest.raises(
        MeritError, match=r"^experiments/other\.yaml: no such experiment\. Known here: tiny\.$"
    ):
        check_plans()


# --- the settings, stage by stage ---------------------------------------------------------------

MODELS = {
    "models/base",
    "models/joint-1ep-s1",
    "models/joint-1ep-s2",
    "models/soup-2-s1",
    "models/merit-1d-s1",
    "models/joint-shrunk-s1",
    "models/joint-1ep-lr0.5-s1",
}
STUDIES = {"studies/weights", "studies/regime", "studies/gain"}
STAGES = {"data", "base", "encode", "gradients", "partition", "evaluation", "report", "scoring"}


def experiment(change: Callable[[dict[str, Any]], Any] = lambda found: None) -> Experiment:
    found = values()
    change(found)
    return Experiment.model_validate(found)


def test_a_file_a_stage_a_model_a_study(folder: Path) -> None:
    planning.run("tiny")
    written = Artifacts("tiny").settings
    stems = {str(path.relative_to(written).with_suffix("")) for path in written.rglob("*.json")}
    assert stems == STAGES | STUDIES | MODELS
    expected = settings_files(load_experiment("tiny"))
    for stem in stems:
        assert read_json(written / f"{stem}.json") == json.loads(json.dumps(expected[stem])), stem
    # every default is filled in
    assert read_json(written / "data.json")["num_new_skills"] == 6
    assert read_json(written / "gradients.json") == {
        **{"num_examples": 200, "stride": 5, "batch_size": 16, "seed": 0},
        **{"representation": "stride", "sketch_size": 65_537, "sketch_seed": 0},
        "trainable": ["decoder"],
        "model": Runtime().model_dump(),
    }
    assert read_json(written / "studies/gain.json")["settings"]["shrinkages"] == [
        *(0.1, 0.25, 0.5, 1.0),
    ]


@pytest.mark.parametrize(
    ("change", "files"),
    [
        (lambda v: v["data"].update(num_questions=11), {"data", "report"}),
        (lambda v: v["base"].update(seed=1), {"base"}),
        (lambda v: v["base"]["phases"][0].update(num_steps=3), {"base"}),
        (lambda v: v["gradients"].update(stride=5), set()),  # the default
        (lambda v: v["gradients"].update(stride=2), {"gradients"} | STUDIES),
        (
            lambda v: v["training"]["optimizer"].update(weight_decay=0.1),
            {"partition"} | STUDIES,
        ),
        (
            lambda v: v["training"].update(trainable=["decoder", "projector"]),
            {"gradients", "partition"} | STUDIES,
        ),
        (lambda v: v.update(merge_weights="uniform"), MODELS | STUDIES),
        (lambda v: v.update(merge_dtype="bfloat16"), MODELS),
        (lambda v: v["evaluation"].update(batch_size=7), {"evaluation", "report"} | STUDIES),
        (
            lambda v: v["evaluation"].update(judge={"url": "http://x/v1", "model": "y"}),
            {"scoring", "report"} | STUDIES,
        ),
        (lambda v: v["evaluation"].update(check_files=False), {"scoring", "report"} | STUDIES),
        (
            lambda v: v["evaluation"].update(benchmarks=["mini_mcq"]),
            {"evaluation", "scoring", "report"} | STUDIES,
        ),
        (lambda v: v["report"].update(title="Other"), {"report"}),
        (lambda v: v.update(encoding={"max_tokens": 9}), {"base", "encode", "partition"}),
        (
            lambda v: v.update(model={"dtype": "bfloat16"}),
            {"base", "encode", "gradients", "partition", "evaluation"} | STUDIES,
        ),
        (
            lambda v: v["methods"]["joint-1ep"].update(may_diverge=True),
            {"partition", "report"} | STUDIES,
        ),
        (lambda v: v["sweeps"]["regime"].update(bases=["main"]), {"partition"} | STUDIES),
        (lambda v: v["studies"]["gain"].update(num_examples=8), {"studies/gain"}),
        (lambda v: v["bases"]["weak"]["data"].update(seed=4), set()),
    ],
)
def test_a_setting_changes_the_files_of_its_stages_alone(
    change: Callable[[dict[str, Any]], Any], files: set[str]
) -> None:
    before, after = settings_files(experiment()), settings_files(experiment(change))
    assert before.keys() == after.keys() == STAGES | STUDIES | MODELS
    assert {stem for stem in before if before[stem] != after[stem]} == files


def test_every_key_is_written_down_also_where_the_yaml_is_silent() -> None:
    """So a default that changes in the code is a change that DVC sees."""

    def silence(found: dict[str, Any]) -> None:
        found["data"].pop("size_spread")
        found["gradients"] = {}
        found["evaluation"] = {"benchmarks": found["evaluation"]["benchmarks"]}
        found["training"]["optimizer"] = {"learning_rate": 1e-3, "batch_size": 4}

    files = settings_files(experiment(silence))
    assert files == settings_files(experiment())
    assert files["data"].keys() == MiniWorldData.model_fields.keys()
    assert files["base"]["base"].keys() == Base.model_fields.keys()
    assert files["encode"]["encoding"].keys() == Encoding.model_fields.keys()
    assert files["encode"]["model"].keys() == Runtime.model_fields.keys()
    assert files["gradients"].keys() == {*Gradients.model_fields, "trainable", "model"}
    assert files["partition"]["training"].keys() == Training.model_fields.keys()
    assert files["partition"]["training"]["optimizer"].keys() == Optimizer.model_fields.keys()
    assert {frozenset(m) for m in files["partition"]["methods"].values()} == {
        frozenset(Method.model_fields)
    }
    assert files["partition"]["sweeps"]["regime"].keys() == Sweep.model_fields.keys()
    assert files["evaluation"]["model"].keys() == Runtime.model_fields.keys()
    asked, scored = files["evaluation"]["evaluation"], files["scoring"]
    assert asked.keys() | scored.keys() == Evaluation.model_fields.keys()
    assert asked.keys() & scored.keys() == {"benchmarks"}
    assert Evaluation.model_validate(asked).judge is None  # as the stage `evaluate` reads it
    for name in ("weights", "regime", "gain"):
        settings = files[f"studies/{name}"]["settings"]
        assert settings.keys() == STUDY_SETTINGS[name].model_fields.keys()


def test_a_new_method_leaves_the_others_recipes_as_they_are() -> None:
    """Or else a further method would merge every model again."""

    def add(found: dict[str, Any]) -> None:
        found["methods"]["random-2"] = {"partition": "random", "groups": 2}

    before, after = settings_files(experiment()), settings_files(experiment(add))
    assert {stem: after[stem] for stem in MODELS} == {stem: before[stem] for stem in MODELS}
    assert set(after) - set(before) == {"models/random-2-s1"}


def test_the_regime_map_and_the_search_follow_readiness() -> None:
    def add(found: dict[str, Any]) -> None:
        found["studies"] |= {"readiness": {}, "tune": {}}

    def add_other(found: dict[str, Any]) -> None:
        found["studies"] |= {"readiness": {"num_points": 9}, "tune": {}}

    first, second = settings_files(experiment(add)), settings_files(experiment(add_other))
    assert {stem for stem in first if first[stem] != second[stem]} == {
        *("studies/readiness", "studies/regime", "studies/tune"),
    }


def test_recipes_by_hand() -> None:
    files = settings_files(experiment())
    origin = {"name": "trained from scratch: experiments/tiny", "revision": None}
    written = {"merge_weights": "tokens", "merge_dtype": "base", "origin": origin}
    nothing = {"source": None, "match": None} | written
    assert files["models/base"] == nothing | {
        **{"model": "base", "method": "base", "seed": None, "rule": "base", "branches": []},
    }
    assert files["models/soup-2-s1"] == nothing | {
        **{"model": "soup-2-s1", "method": "soup-2", "seed": 1, "rule": "merge"},
        "branches": ["joint-1ep-s1", "joint-1ep-s2"],
    }
    assert files["models/merit-1d-s1"] == nothing | {
        **{"model": "merit-1d-s1", "method": "merit-1d", "seed": 1, "rule": "merge"},
        "branches": ["merit-1d-s1-g0", "merit-1d-s1-g1"],
    }
    assert files["models/joint-shrunk-s1"] == written | {
        **{"model": "joint-shrunk-s1", "method": "joint-shrunk", "seed": 1, "rule": "shrunk"},
        **{"branches": [], "source": "joint-1ep-s1", "match": "merit-1d-s1"},
    }
