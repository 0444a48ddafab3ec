"""Settings: what is committed loads, and every mistake is named by file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from merit.config import (
    Experiment,
    JointMethod,
    Level,
    MeritMethod,
    ShrunkMethod,
    load_experiment,
    load_params,
    select,
)
from merit.errors import MeritError
from merit.methods import plan

ROOT = Path(__file__).parent.parent
COMMITTED = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))


def settings() -> dict[str, Any]:
    """An experiment that is right."""
    return {
        "name": "tiny",
        "data": {
            **{"source": "mini_world", "seed": 0, "num_examples": 8, "num_images": 8},
            **{"num_conversations": 1, "num_questions": 1, "num_validation_questions": 1},
        },
        "base": {"checkpoint": "theta0"},
        "gradients": {},
        "training": {
            "trainable": ["decoder"],
            "optimizer": {"learning_rate": 0.1, "batch_size": 2, "betas": [0.9, 0.95]},
        },
        "methods": {
            "base": {"partition": "base"},
            "joint-1ep": {"partition": "joint", "seeds": [1, 2]},
            "merit-1d": {"partition": "merit", "axes": 1, "seeds": [1]},
            "joint-shrunk": {
                **{"partition": "shrunk", "source": "joint-1ep"},
                **{"match": "merit-1d", "seeds": [1]},
            },
        },
        "evaluation": {"benchmarks": ["mini_scene"]},
        "report": {"title": "Tiny", "paper_table": "table02_vision_flan_3b"},
    }


def set_at(values: dict[str, Any], key: str, value: Any) -> None:
    """values[a][b] = value for the key "a.b"; without the key where value is None."""
    *blocks, last = key.split(".")
    for block in blocks:
        values = values[block]
    if value is None:
        del values[last]
    else:
        values[last] = value


def refusal(folder: Path, values: dict[str, Any], name: str = "tiny") -> str:
    """The message for experiments/<name>.yaml with these values."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(MeritError) as caught:
        load_experiment(name, folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / name}.yaml: ")
    return message.removeprefix(f"{folder / name}.yaml: ")


def test_the_committed_files_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert "mini_vision" in COMMITTED
    for name in COMMITTED:
        assert load_experiment(name).name == name
    assert set(load_params().experiments) <= set(COMMITTED)


def test_a_right_experiment_is_read_as_written(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings()), encoding="utf-8")
    experiment = load_experiment("tiny", tmp_path)
    assert experiment.base.checkpoint == "theta0"
    assert experiment.training.optimizer.betas == (0.9, 0.95)
    assert (experiment.gradients.num_examples, experiment.gradients.stride) == (200, 5)  # METHOD 2
    assert experiment.methods["joint-1ep"] == JointMethod(partition="joint", seeds=[1, 2])
    assert experiment.methods["merit-1d"] == MeritMethod(partition="merit", axes=1)
    assert isinstance(experiment.methods["joint-shrunk"], ShrunkMethod)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # misspelled, at every depth, with what was probably meant
        ("evalution", {}, "unknown key `evalution`. Did you mean `evaluation`?"),
        ("data.num_image", 3, "unknown key `data.num_image`. Did you mean `num_images`?"),
        (
            "training.optimizer.learning_rat",
            0.1,
            "unknown key `training.optimizer.learning_rat`. Did you mean `learning_rate`?",
        ),
        ("methods.merit-1d.axis", 1, "unknown key `methods.merit-1d.axis`. Did you mean `axes`?"),
        # far from anything known: the known keys
        ("report.zzz", 1, "unknown key `report.zzz`. Known here: curves, paper_build, paper_table"),
        # the keys of the method's own kind are suggested, not those of another
        (
            "methods.joint-1ep.groups",
            2,
            "unknown key `methods.joint-1ep.groups`. Known here: "
            "epochs, full_seeds, partition, seeds, when.",
        ),
        (
            "methods.merit-1d",
            {"partition": "conflict", "groups": 2},
            "unknown key `methods.merit-1d.groups`. Known here: "
            "epochs, full_seeds, partition, reading, seeds, when.",
        ),
        # missing
        ("methods.merit-1d", {"partition": "kmeans"}, "key `methods.merit-1d.groups` is missing"),
        ("data.num_questions", None, "key `data.num_questions` is missing"),
        ("report", None, "key `report` is missing"),
        ("methods.merit-1d.axes", None, "key `methods.merit-1d.axes` is missing"),
        # wrong types and values: strict, so "8" is no integer
        (
            "data.num_examples",
            "8",
            "key `data.num_examples`: found '8': Input should be a valid int",
        ),
        (
            "data.num_examples",
            0,
            "key `data.num_examples`: found 0: Input should be greater than 0",
        ),
        ("data.seed", 1.5, "key `data.seed`: found 1.5: "),
        ("methods.joint-1ep.seeds", 1, "key `methods.joint-1ep.seeds`: found 1: "),
        ("methods.joint-1ep.seeds", [], "key `methods.joint-1ep.seeds`: found []: "),
        ("methods.merit-1d.axes", 11, "key `methods.merit-1d.axes`: found 11: "),
        ("training.trainable", ["decodr"], "key `training.trainable.0`: found 'decodr': "),
        ("training.optimizer.betas", [0.9], "key `training.optimizer.betas.1` is missing"),
        (
            "merge_weights",
            "token",
            "key `merge_weights`: found 'token': Input should be 'tokens', 'loss_tokens', "
            "'samples' or 'uniform'",
        ),
        ("merge_weight", "tokens", "unknown key `merge_weight`. Did you mean `merge_weights`?"),
        ("merge_weights", ["tokens"], "key `merge_weights`: found ['tokens']: "),
        ("data.num_new_skills", 17, "key `data.num_new_skills`: found 17: "),
        ("training.optimizer.algorithm", "muom", "key `training.optimizer.algorithm`: found 'muom"),
        ("methods", {}, "key `methods`: found {}: "),
        ("methods.joint-1ep.seeds", [-1], "key `methods.joint-1ep.seeds.0`: found -1: "),
        ("methods.joint-1ep.when", "never", "key `methods.joint-1ep.when`: found 'never': "),
        (
            "methods.merit-1d",
            {"partition": "conflict", "reading": "inside"},
            "key `methods.merit-1d.reading`: found 'inside': Input should be 'within' or 'between'",
        ),
        (
            "methods.merit-1d",
            {"partition": "kmeans", "groups": 1},
            "key `methods.merit-1d.groups`: found 1: Input should be greater than or equal to 2",
        ),
        (
            "methods.merit-1d",
            {"partition": "rawpca", "axes": 0},
            "key `methods.merit-1d.axes`: found 0: Input should be greater than or equal to 1",
        ),
        ("methods.merit-1d.partition", "kmean", "key `methods.merit-1d`: found {"),
        # contradictions
        (
            "base",
            {},
            "key `base`: give exactly one of `architecture` (build) and `checkpoint` (load)",
        ),
        (
            "methods.joint-shrunk.match",
            "merit-9d",
            "methods.joint-shrunk.match: no method is called 'merit-9d'",
        ),
        (
            "methods.joint-shrunk.source",
            "merit-1d",
            "methods.joint-shrunk.source: 'merit-1d' is not a joint method",
        ),
        (
            "methods.joint-shrunk.seeds",
            [1, 2],
            "methods.joint-shrunk.seeds: [2] are not seeds of 'merit-1d'",
        ),
        ("report.curves", ["joint-9ep"], "report: no method is called 'joint-9ep'"),
        ("report.partition", "merit-9d", "report: no method is called 'merit-9d'"),
        # contradictions between the levels of work
        (
            "methods.joint-1ep.full_seeds",
            [2, 3],
            "key `methods.joint-1ep`: `full_seeds` must hold all of `seeds`; [1] are missing",
        ),
        (
            "methods.joint-shrunk.full_seeds",
            [1, 2],
            "methods.joint-shrunk.full_seeds: [2] are not seeds of 'merit-1d' with `studies: full`",
        ),
        (
            "methods.merit-1d.when",
            "full",
            "methods.joint-shrunk.match: 'merit-1d' is `when: full`; 'joint-shrunk' must be, too",
        ),
        ("methods.base.when", "full", "unknown key `methods.base.when`. Known here: partition."),
        (
            "methods",
            {"m": {"partition": "joint", "when": "full"}},
            "methods: all are `when: full`; at least one must run by default",
        ),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    values = settings()
    set_at(values, key, value)
    assert refusal(tmp_path, values).startswith(message)


def test_an_unknown_reading_of_merge_weights_is_one_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, settings() | {"merge_weights": "token"})
    assert len(message.splitlines()) == 1
    assert "`merge_weights`" in message


@pytest.mark.parametrize("reading", ["tokens", "loss_tokens", "samples", "uniform"])
def test_every_reading_of_merge_weights_is_read(tmp_path: Path, reading: str) -> None:
    assert Experiment.model_validate(settings()).merge_weights == "tokens"  # if none is given
    values = settings() | {"merge_weights": reading}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_experiment("tiny", tmp_path).merge_weights == reading


@pytest.mark.parametrize("key", ["curves", "partition"])
def test_the_report_draws_what_runs_by_default(tmp_path: Path, key: str) -> None:
    values = settings()
    values["methods"]["kmeans-2"] = {"partition": "kmeans", "groups": 2, "when": "full"}
    values["report"][key] = ["kmeans-2"] if key == "curves" else "kmeans-2"
    assert refusal(tmp_path, values) == (
        "report: 'kmeans-2' is `when: full`; name a method that runs by default, too"
    )


def two_levels() -> dict[str, Any]:
    """`settings` with more seeds, a method and its control at the full level."""
    values = settings()
    values["methods"]["merit-1d"]["full_seeds"] = [1, 2]
    values["methods"]["joint-shrunk"]["full_seeds"] = [2, 1]
    values["methods"]["kmeans-2"] = {"partition": "kmeans", "groups": 2, "when": "full"}
    values["methods"]["kmeans-shrunk"] = {
        **{"partition": "shrunk", "source": "joint-1ep", "match": "kmeans-2"},
        **{"when": "full"},
    }
    return values


SEEDS: dict[Level, dict[str, list[int]]] = {
    "default": {"base": [], "joint-1ep": [1, 2], "merit-1d": [1], "joint-shrunk": [1]},
    "full": {
        **{"base": [], "joint-1ep": [1, 2], "merit-1d": [1, 2], "joint-shrunk": [2, 1]},
        **{"kmeans-2": [1], "kmeans-shrunk": [1]},
    },
}


def seeds(experiment: Experiment) -> dict[str, list[int]]:
    return {name: getattr(method, "seeds", []) for name, method in experiment.methods.items()}


@pytest.mark.parametrize("level", ["default", "full"])
def test_a_level_selects_methods_and_seeds(level: Level) -> None:
    whole = Experiment.model_validate(two_levels())
    chosen = select(whole, level)
    assert list(chosen.methods) == list(SEEDS[level])  # in the order of the YAML
    assert seeds(chosen) == SEEDS[level]
    # nothing else changes, twice is once, and what is chosen is a right experiment by itself
    assert chosen.model_dump(exclude={"methods"}) == whole.model_dump(exclude={"methods"})
    assert select(chosen, level) == chosen
    assert Experiment.model_validate(chosen.model_dump()) == chosen


def test_the_full_level_holds_the_default_one() -> None:
    whole = Experiment.model_validate(two_levels())
    default, full = plan(select(whole, "default")), plan(select(whole, "full"))
    assert default.branches.items() <= full.branches.items()
    assert default.models.items() <= full.models.items()
    assert sorted(set(full.branches) - set(default.branches)) == [
        "kmeans-2-s1-g0",
        "kmeans-2-s1-g1",
        "merit-1d-s2-g0",
        "merit-1d-s2-g1",
    ]


@pytest.mark.parametrize(
    ("params", "level"),
    [
        (None, "default"),
        ("experiments: [tiny]", "default"),
        ("experiments: [tiny]\nstudies: default", "default"),
        ("experiments: [tiny]\nstudies: full", "full"),
    ],
)
def test_the_params_beside_the_experiments_decide_the_level(
    tmp_path: Path, params: str | None, level: Level
) -> None:
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(two_levels()), encoding="utf-8")
    if params is not None:
        (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    assert seeds(load_experiment("tiny", folder)) == SEEDS[level]


def test_a_base_is_built_or_loaded_not_both(tmp_path: Path) -> None:
    values = settings()
    committed = yaml.safe_load((ROOT / "experiments" / "mini_vision.yaml").read_text("utf-8"))
    values["base"]["architecture"] = committed["base"]["architecture"]
    assert refusal(tmp_path, values) == (
        "key `base`: give exactly one of `architecture` (build) and `checkpoint` (load)"
    )


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    values = settings()
    values["data"]["sed"] = 1
    del values["report"]["title"]
    lines = refusal(tmp_path, values).splitlines()
    assert len(lines) == 2
    assert "unknown key `data.sed`. Did you mean `seed`?" in lines[0]
    assert lines[1].endswith("tiny.yaml: key `report.title` is missing")


def test_a_name_that_is_not_the_files(tmp_path: Path) -> None:
    message = refusal(tmp_path, settings(), name="other")
    assert message == "key `name`: found 'tiny', the file is called 'other'"


def test_a_missing_experiment_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings()), encoding="utf-8")
    with pytest.raises(MeritError, match=r"tinny\.yaml: no such experiment\. Did you mean `tiny`?"):
        load_experiment("tinny", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiment: [a]", "unknown key `experiment`. Did you mean `experiments`?"),
        ("experiments: [a]\ntracking: {url: x}", "unknown key `tracking.url`. Did you mean `uri`?"),
        ("workers: 2", "key `experiments` is missing"),
        ("experiments: mini", "key `experiments`: found 'mini': "),
        ("experiments: []", "key `experiments`: found []: "),
        ("experiments: [a]\nstudies: all", "key `studies`: found 'all': Input should be 'default'"),
        ("experiments: [a]\nworkers: two", "key `workers`: found 'two': "),
        ("experiments: [a]\nworkers: true", "key `workers`: found True: "),
        ("- a\n- b", "expected keys and values, found list"),
        ("", "expected keys and values, found NoneType"),
        ("experiments: [a", "not valid YAML: "),
    ],
)
def test_a_mistake_in_params_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MeritError) as caught:
        load_params(path)
    found = [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]
    assert any(line.startswith(message) for line in found), found


def test_missing_params_say_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"params\.yaml: file not found; run from"):
        load_params(tmp_path / "params.yaml")
