"""Settings: what is committed loads, and every mistake is named by file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from merit.config import (
    Experiment,
    Method,
    every_method,
    load_experiment,
    load_params,
)
from merit.config.experiment import merged, variants
from merit.errors import MeritError

ROOT = Path(__file__).parent.parent
FILES = (ROOT / "experiments").glob("*.yaml")
COMMITTED = sorted(path.stem for path in FILES)


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
    assert (experiment.gradients.num_examples, experiment.gradients.stride) == (200, 5)  # paper
    assert experiment.methods == {
        "base": Method(partition="base", seeds=[1]),
        "joint-1ep": Method(partition="joint", seeds=[1, 2], epochs=1.0),
        "merit-1d": Method(partition="merit", axes=1, optimizer={}),
        "joint-shrunk": Method(partition="shrunk", source="joint-1ep", match="merit-1d"),
    }


AT = "methods.merit-1d"
SHRUNK = "methods.joint-shrunk"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # misspelled, at every depth, with what was probably meant, or the known keys
        ("evalution", {}, "unknown key `evalution`. Did you mean `evaluation`?"),
        ("training.optimizer.betta", 1, "unknown key `training.optimizer.betta`. Did you mean `be"),
        ("report.zzz", 1, "unknown key `report.zzz`. Known here: also_tables, benchmarks, brief"),
        # a key of another rule
        (AT, {"partition": "conflict", "groups": 2}, "key `methods.merit-1d`: `groups` is no key "
         "of `partition: conflict`. Known here: epochs, may_diverge, optimizer, partition, "
         "reading"),
        ("methods.base.seeds", [2], "key `methods.base`: `seeds` is no key of `partition: base`."),
        # missing
        (f"{AT}.axes", None, "key `methods.merit-1d`: `axes` is missing; `partition: merit` needs"),
        ("data.num_questions", None, "key `data.num_questions` is missing"),
        # wrong types and values: strict, so "8" is no integer
        ("data.num_examples", "8", "key `data.num_examples`: found '8': Input should be a valid i"),
        ("data.num_examples", 0, "key `data.num_examples`: found 0: Input should be greater than"),
        ("methods.joint-1ep.seeds", [-1], "key `methods.joint-1ep.seeds.0`: found -1: "),
        (f"{AT}.partition", "kmean", "key `methods.merit-1d.partition`: found 'kmean'. Did you me"),
        ("training.trainable", ["decodr"], "key `training.trainable.0`: found 'decodr': neither"),
        ("merge_weights", "token", "key `merge_weights`: found 'token': Input should be 'tokens',"),
        # names that a file or DVC could not bear
        ("methods.m@1", {"partition": "joint"}, "key `methods.m@1`: found 'm@1': "),
        ("methods.null", {"partition": "joint"}, "name 'null': a value in YAML"),
        ("methods.joint-1ep-s1", {"partition": "joint"},
         "methods.joint-1ep-s1: a run of joint-1ep is called so"),
        # contradictions
        ("base", {}, "key `base`: give exactly one of `architecture`, `checkpoint`, `hub`, `assem"),
        (f"{SHRUNK}.match", "merit-9d", f"{SHRUNK}.match: no method is called 'merit-9d'"),
        (f"{SHRUNK}.source", "merit-1d", f"{SHRUNK}.source: 'merit-1d' is not a joint method"),
        (f"{SHRUNK}.seeds", [1, 2], f"{SHRUNK}.seeds: [2] are not seeds of 'merit-1d'"),
        ("methods.joint-1ep.seeds", [1, 2, 1], "key `methods.joint-1ep`: `seeds`: [1] are listed "),
        ("report.curves", ["joint-9ep"], "report: no method is called 'joint-9ep'"),
        ("report.also_tables", {"t": ["b"]}, "report: benchmark 'b' is not in evaluation.benchma"),
        (f"{AT}.optimizer", {"learning_rat": 1}, f"{AT}.optimizer.learning_rat: extra inputs are "
         "not permitted. Did you mean `learning_rate`?"),
        ("sweeps", {"s": {"methods": ["j"]}}, "sweeps.s.methods: no method is called 'j'"),
        ("sweeps", {"s": {"methods": ["base"]}}, "sweeps.s.methods: 'base' is the base, which has"),
        ("sweeps", {"s": {"methods": ["joint-1ep", "joint-shrunk"]}},
         "sweeps.s.methods: 'joint-shrunk' needs 'merit-1d' there, too"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    values = settings()
    set_at(values, key, value)
    found = refusal(tmp_path, values)
    assert found.startswith(message)
    assert len(found.splitlines()) == 1


def test_kernels_of_a_gpu_are_refused_on_a_cpu(tmp_path: Path) -> None:
    values = settings() | {"model": {"device": "cpu"}}
    set_at(values, "training.kernels", "liger")
    assert refusal(tmp_path, values) == "kernels: 'liger' is for a GPU, and model.device is 'cpu'"


# --- an experiment that extends another one -------------------------------------------------------


def write(folder: Path, **files: Any) -> None:
    for name, values in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")


def test_a_child_changes_some_keys(tmp_path: Path) -> None:
    """Mappings are merged, lists and scalars replaced, `null` removes; the parent's order stays."""
    methods = {
        "base": {},
        "joint-0.5ep": {"partition": "joint", "epochs": 0.5},
        "joint-1ep": {"seeds": [3]},
        "joint-shrunk": None,
        "random-2": {"partition": "random", "groups": 2},
    }
    child = {"extends": "tiny", "methods": methods, "report": {"title": "Child"}}
    child["training"] = {"optimizer": {"batch_size": 4, "betas": None}}
    write(tmp_path, tiny=settings(), child=child, grandchild={"extends": "child"})
    parent, found = load_experiment("tiny", tmp_path), load_experiment("child", tmp_path)
    assert found.name == "child"
    assert list(found.methods) == ["base", "joint-0.5ep", "joint-1ep", "merit-1d", "random-2"]
    assert found.methods["joint-1ep"] == Method(partition="joint", seeds=[3])
    assert found.methods["merit-1d"] == parent.methods["merit-1d"]
    optimizer = found.training.optimizer
    assert (optimizer.learning_rate, optimizer.batch_size) == (0.1, 4)
    assert optimizer.betas == (0.9, 0.999)  # the default: the child removes the parent's
    assert (found.report.title, found.report.paper_table) == ("Child", parent.report.paper_table)
    again = load_experiment("grandchild", tmp_path)
    assert again.model_copy(update={"name": "child"}) == found


def test_null_is_kept_where_the_parent_says_nothing() -> None:
    assert merged({"a": None, "b": 1, "c": {"d": 1}}, {"b": None, "e": None}) == {
        "a": None, "c": {"d": 1}, "e": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tiny": {"extends": "tiny"}},
            "tiny.yaml: key `extends`: tiny extends tiny: no experiment may extend itself",
        ),
        (
            {"tiny": {"extends": "b"}, "b": {"extends": "c"}, "c": {"extends": "b"}},
            "tiny.yaml: key `extends`: tiny extends b extends c extends b: no experiment may",
        ),
        (
            {"tiny": {"extends": "bb"}, "b": {}},
            "tiny.yaml: key `extends`: FOLDER/bb.yaml: no such experiment. Did you mean `b`?",
        ),
        ({"tiny": {"extends": ["b"]}}, "tiny.yaml: key `extends`: found ['b'], expected an exp"),
        ({"tiny": settings() | {"rehearsal": 3}}, "tiny.yaml: key `rehearsal`: found 3, expected"),
        ({"tiny": {"name": "other"}}, "tiny.yaml: key `name`: found 'other', the file is called"),
    ],
)
def test_a_parent_that_cannot_be_taken(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(MeritError) as caught:
        load_experiment("tiny", tmp_path)
    assert str(caught.value).replace(str(tmp_path), "FOLDER").startswith(f"FOLDER/{message}")
    assert len(str(caught.value).splitlines()) == 1


# --- sweeps ---------------------------------------------------------------------------------------


def swept(**sweep: Any) -> dict[str, Method]:
    """What a sweep of joint training, merit and their control adds; the own rate is 0.1, b2."""
    values = settings()
    values["sweeps"] = {"s": {"methods": ["joint-1ep", "merit-1d", "joint-shrunk"], **sweep}}
    return dict(variants(Experiment.model_validate(values)))


def test_a_sweep_is_every_combination_but_the_experiments_own() -> None:
    found = swept(learning_rate=[0.05, 0.1], batch_size=[2, 4], seeds=[3, 4])
    names = ["joint-1ep", "merit-1d", "joint-shrunk"]
    tags = ["-lr0.05", "-lr0.05-b4", "-b4"]  # lr 0.1 and b2 are the experiment's own methods
    assert list(found) == [name + tag for tag in tags for name in names]
    both = {"learning_rate": 0.05, "batch_size": 4}
    assert found["joint-1ep-lr0.05-b4"] == Method(
        partition="joint", seeds=[3, 4], optimizer=both, may_diverge=True
    )
    assert found["merit-1d-b4"] == Method(
        partition="merit", axes=1, seeds=[3, 4], optimizer={"batch_size": 4}, may_diverge=True
    )
    # the control shrinks the swept model to the swept match
    assert found["joint-shrunk-lr0.05"] == Method(
        **{"partition": "shrunk", "seeds": [3, 4]},
        **{"source": "joint-1ep-lr0.05", "match": "merit-1d-lr0.05"},
    )


def test_a_sweep_of_the_experiments_own_point_adds_nothing() -> None:
    assert swept() == swept(learning_rate=[0.1], batch_size=[2], algorithm="adamw") == {}


def test_a_sweep_keeps_what_a_method_changes_by_itself() -> None:
    values = settings()
    values["methods"]["joint-1ep"]["optimizer"] = {"schedule": "linear", "learning_rate": 0.3}
    values["sweeps"] = {"s": {"methods": ["joint-1ep"], "learning_rate": [0.2]}}
    found = every_method(Experiment.model_validate(values))
    assert list(found) == ["base", "joint-1ep", "merit-1d", "joint-shrunk", "joint-1ep-lr0.2"]
    assert found["joint-1ep-lr0.2"].optimizer == {"schedule": "linear", "learning_rate": 0.2}
    assert found["joint-1ep"].optimizer == {"schedule": "linear", "learning_rate": 0.3}


# --- the files as a whole -------------------------------------------------------------------------


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    values = settings()
    values["data"]["sed"] = 1
    del values["report"]["title"]
    lines = refusal(tmp_path, values).splitlines()
    assert len(lines) == 2
    assert "unknown key `data.sed`. Did you mean `seed`?" in lines[0]
    assert lines[1].endswith("tiny.yaml: key `report.title` is missing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"experiment: [a]", ": unknown key `experiment`. Did you mean `experiments`?"),
        (b"- a\n- b", ": expected keys and values, found list"),
        (b"experiments: [a", ": not valid YAML: "),
        (b"experiments: [a]\nlaunch: {slots: 1, slots: 2}", ", line 2: key `slots` is there twice"),
        (b"experiments: [\xe9]", ": not valid YAML: 'utf-8' codec can't decode"),
    ],
)
def test_a_mistake_in_params_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "params.yaml").write_bytes(text)
    with pytest.raises(MeritError) as caught:
        load_params(tmp_path / "params.yaml")
    assert f"{tmp_path}/params.yaml{message}" in str(caught.value)


def test_without_params_every_experiment_at_hand_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MeritError, match=r"no experiment here; `merit new NAME"):
        load_params()
    Path("experiments").mkdir()
    for name in ("b", "a"):
        Path(f"experiments/{name}.yaml").touch()
    params = load_params()
    assert (params.experiments, params.workers) == (["a", "b"], 2)
