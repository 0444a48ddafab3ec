"""Settings: what is committed loads, and every mistake is named by file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from merit.config import (
    Experiment,
    Method,
    Optimizer,
    every_method,
    load_experiment,
    load_params,
    other_base,
    overridden,
    select,
    suffix,
    variants,
)
from merit.config.branches import plan
from merit.config.settings import Level
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
        "merit-1d": Method(partition="merit", axes=1, optimizer={}, base="main"),
        "joint-shrunk": Method(partition="shrunk", source="joint-1ep", match="merit-1d"),
    }


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
        (
            "report.zzz",
            1,
            "unknown key `report.zzz`. Known here: also_tables, benchmarks, curves",
        ),
        # a key of another rule: those that this one has
        (
            "methods.joint-1ep.groups",
            2,
            "key `methods.joint-1ep`: `groups` is no key of `partition: joint`. Known here: "
            "base, epochs, may_diverge, optimizer, partition, seeds.",
        ),
        (
            "methods.merit-1d",
            {"partition": "conflict", "groups": 2},
            "key `methods.merit-1d`: `groups` is no key of `partition: conflict`. Known here: "
            "base, epochs, may_diverge, optimizer, partition, reading, seeds.",
        ),
        (
            "methods.merit-1d.reading",
            "between",
            "key `methods.merit-1d`: `reading` is no key of `partition: merit`. Known here: "
            "axes, base, epochs, may_diverge, optimizer, partition, seeds.",
        ),
        (
            "methods.joint-shrunk.epochs",
            2.0,
            "key `methods.joint-shrunk`: `epochs` is no key of `partition: shrunk`. Known here: "
            "base, match, partition, seeds, source.",
        ),
        (
            "methods.base.seeds",
            [2],
            "key `methods.base`: `seeds` is no key of `partition: base`. Known here: partition.",
        ),
        # keys that there were once
        (
            "methods.joint-1ep.full_seeds",
            [2, 3],
            "unknown key `methods.joint-1ep.full_seeds`. Did you mean `seeds`?",
        ),
        (
            "methods.merit-1d.when",
            "full",
            "unknown key `methods.merit-1d.when`. Known here: axes, base, epochs, groups, match, ",
        ),
        # missing
        (
            "methods.merit-1d",
            {"partition": "kmeans"},
            "key `methods.merit-1d`: `groups` is missing; `partition: kmeans` needs it",
        ),
        (
            "methods.merit-1d.axes",
            None,
            "key `methods.merit-1d`: `axes` is missing; `partition: merit` needs it",
        ),
        (
            "methods.joint-shrunk.match",
            None,
            "key `methods.joint-shrunk`: `match` is missing; `partition: shrunk` needs it",
        ),
        ("data.num_questions", None, "key `data.num_questions` is missing"),
        ("report", None, "key `report` is missing"),
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
        ("training.trainable", ["decodr"], "key `training.trainable.0`: found 'decodr': neither"),
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
        (
            "methods.joint-1ep.seeds",
            {"never": [1]},
            "key `methods.joint-1ep.seeds.never`: found 'never': Input should be 'default', ",
        ),
        (
            "methods.joint-1ep.seeds",
            {"default": [1], "full": 2},
            "key `methods.joint-1ep.seeds.full`: found 2: Input should be a valid list",
        ),
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
        (
            "methods.merit-1d.partition",
            "kmean",
            "key `methods.merit-1d.partition`: found 'kmean': Input should be 'base', 'joint', ",
        ),
        # contradictions
        (
            "base",
            {},
            "key `base`: give exactly one of `architecture`, `checkpoint`, `hub`, `assemble`",
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
            "methods.joint-1ep.seeds",
            {"default": [1, 2], "full": [3, 2]},
            "key `methods.joint-1ep`: `seeds`: [2] are listed twice; every level but `default` "
            "says what it adds to that one",
        ),
        (
            "methods.joint-shrunk.seeds",
            {"default": [1], "full": [2]},
            "methods.joint-shrunk.seeds: [2] are not seeds of 'merit-1d' at the full level",
        ),
        (
            "methods.merit-1d.seeds",
            {"full": [1]},
            "methods.joint-shrunk.seeds: [1] are not seeds of 'merit-1d'",
        ),
        (
            "methods",
            {"m": {"partition": "joint", "seeds": {"full": [1]}}},
            "methods: none has seeds at the default level; at least one must",
        ),
        # what a method changes in its optimiser, and the base that it starts from
        (
            "methods.merit-1d.optimizer",
            {"learning_rat": 0.1},
            "methods.merit-1d.optimizer.learning_rat: extra inputs are not permitted. "
            "Did you mean `learning_rate`?",
        ),
        (
            "methods.merit-1d.optimizer",
            {"batch_size": 0},
            "methods.merit-1d.optimizer.batch_size: input should be greater than 0. ",
        ),
        (
            "methods.merit-1d.base",
            "week",
            "methods.merit-1d.base: no base is called 'week'. Known here: main.",
        ),
        # sweeps
        (
            "sweeps",
            {"s": {"methods": ["joint-9ep"]}},
            "sweeps.s.methods: no method is called 'joint-9ep'",
        ),
        (
            "sweeps",
            {"s": {"methods": ["base"]}},
            "sweeps.s.methods: 'base' is the base, which has no settings",
        ),
        (
            "sweeps",
            {"s": {"methods": ["joint-1ep", "joint-shrunk"], "learning_rate": [0.2]}},
            "sweeps.s.methods: 'joint-shrunk' needs 'merit-1d' there, too",
        ),
        (
            "sweeps",
            {"s": {"methods": ["joint-1ep"], "bases": ["main", "weak"]}},
            "sweeps.s.bases: no base is called 'weak'. Known here: main.",
        ),
        ("sweeps", {"s": {"methods": []}}, "key `sweeps.s.methods`: found []: "),
        (
            "sweeps",
            {"s": {"methods": ["joint-1ep"], "learning_rates": [0.2]}},
            "unknown key `sweeps.s.learning_rates`. Did you mean `learning_rate`?",
        ),
        # other bases
        (
            "bases",
            {"main": {}},
            "bases.main: letters, digits and _ only, and neither 'main', which is the",
        ),
        ("bases", {"we-ak": {}}, "bases.we-ak: letters, digits and _ only, and neither 'main', "),
        (
            "bases",
            {"weak": {"data": {"num_image": 3}}},
            "bases.weak: num_image: Extra inputs are not permitted",
        ),
        (
            "bases",
            {"weak": {"phases": {"stage 2": {"num_steps": 7}}}},
            "bases.weak.phases: no phase is called 'stage 2'.",
        ),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    values = settings()
    set_at(values, key, value)
    found = refusal(tmp_path, values)
    assert found.startswith(message)
    assert len(found.splitlines()) == 1


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
    values["methods"]["kmeans-2"] = {"partition": "kmeans", "groups": 2, "seeds": {"full": [1]}}
    values["report"][key] = ["kmeans-2"] if key == "curves" else "kmeans-2"
    assert refusal(tmp_path, values) == (
        "report: 'kmeans-2' has no seeds at the default level; give it some"
    )


def test_a_sweeps_methods_run_at_its_level(tmp_path: Path) -> None:
    values = settings()
    values["methods"]["kmeans-2"] = {"partition": "kmeans", "groups": 2, "seeds": {"full": [1]}}
    values["sweeps"] = {"s": {"methods": ["kmeans-2"], "level": "full"}}
    assert list(Experiment.model_validate(values).sweeps) == ["s"]
    values["sweeps"]["s"]["level"] = "default"
    assert refusal(tmp_path, values) == (
        "sweeps.s.methods: 'kmeans-2' has no seeds at the default level; give it some"
    )


# --- what is run at a level -----------------------------------------------------------------------


def all_levels() -> dict[str, Any]:
    """`settings` with seeds, methods, sweeps and studies of the other levels."""
    values = settings()
    values["methods"] |= {
        "merit-1d": {"partition": "merit", "axes": 1, "seeds": {"default": [1], "full": [3, 2]}},
        "joint-shrunk": {
            **{"partition": "shrunk", "source": "joint-1ep", "match": "merit-1d"},
            **{"seeds": {"default": [1], "full": [2]}},
        },
        "kmeans-2": {"partition": "kmeans", "groups": 2, "seeds": {"full": [1]}},
        "random-2": {"partition": "random", "groups": 2, "seeds": {"tune": [5]}},
    }
    values["sweeps"] = {
        "always": {"methods": ["joint-1ep"], "learning_rate": [0.1, 0.2]},
        "more": {"methods": ["kmeans-2"], "level": "full", "algorithm": "sgd"},
        "search": {"methods": ["random-2"], "level": "tune", "batch_size": [1, 2]},
    }
    values["studies"] = {"cost": {}, "gain": {"level": "full"}}
    return values


ALWAYS = {"base": [1], "joint-1ep": [1, 2], "merit-1d": [1], "joint-shrunk": [1]}
SEEDS: dict[Level, dict[str, list[int]]] = {
    "default": ALWAYS,
    "full": ALWAYS | {"merit-1d": [1, 3, 2], "joint-shrunk": [1, 2], "kmeans-2": [1]},
    "tune": ALWAYS | {"random-2": [5]},
}
SWEEPS: dict[Level, dict[str, list[int]]] = {
    "default": {"joint-1ep-lr0.2": [1]},
    "full": {"joint-1ep-lr0.2": [1], "kmeans-2-sgd": [1]},
    "tune": {"joint-1ep-lr0.2": [1], "random-2-b1": [1]},
}
STUDIES: dict[Level, list[str]] = {
    "default": ["cost"],
    "full": ["cost", "gain"],
    "tune": ["cost"],
}
LEVELS: tuple[Level, ...] = ("default", "full", "tune")


def seeds(experiment: Experiment) -> dict[str, Any]:
    return {name: method.seeds for name, method in experiment.methods.items()}


def test_seeds_by_level() -> None:
    plain = Method(partition="joint", seeds=[4, 2])
    assert [plain.seeds_at(level) for level in LEVELS] == [[4, 2]] * 3
    by_level = Method(partition="joint", seeds={"full": [1], "default": [3, 2]})
    assert [by_level.seeds_at(level) for level in LEVELS] == [[3, 2], [3, 2, 1], [3, 2]]
    only_full = Method(partition="joint", seeds={"full": [7]})
    assert [only_full.seeds_at(level) for level in LEVELS] == [[], [7], []]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_selects_methods_seeds_sweeps_and_studies(level: Level) -> None:
    whole = Experiment.model_validate(all_levels())
    chosen = select(whole, level)
    assert list(chosen.methods) == list(SEEDS[level])  # in the order of the YAML
    assert seeds(chosen) == SEEDS[level]
    assert {name: method.seeds for name, method in variants(chosen)} == SWEEPS[level]
    assert list(chosen.studies) == STUDIES[level]
    # nothing else changes, twice is once, and what is chosen is a right experiment by itself
    parts = {"methods", "sweeps", "studies"}
    assert chosen.model_dump(exclude=parts) == whole.model_dump(exclude=parts)
    assert select(chosen, level) == chosen
    assert Experiment.model_validate(chosen.model_dump()) == chosen


def test_every_level_holds_the_default_one() -> None:
    whole = Experiment.model_validate(all_levels())
    default, full, tune = (plan(select(whole, level)) for level in LEVELS)
    for larger in (full, tune):
        assert default.branches.items() <= larger.branches.items()
        assert default.models.items() <= larger.models.items()
    assert sorted(set(full.branches) - set(default.branches)) == sorted(
        [f"kmeans-2{changed}-s1-g{k}" for changed in ("", "-sgd") for k in (0, 1)]
        + [f"merit-1d-s{seed}-g{k}" for seed in (2, 3) for k in (0, 1)]
    )
    assert sorted(set(tune.branches) - set(default.branches)) == [
        *("random-2-b1-s1-g0", "random-2-b1-s1-g1", "random-2-s5-g0", "random-2-s5-g1"),
    ]


@pytest.mark.parametrize(
    ("params", "level"),
    [
        (None, "default"),
        ("experiments: [tiny]", "default"),
        ("experiments: [tiny]\nlevel: default", "default"),
        ("experiments: [tiny]\nlevel: full", "full"),
        ("experiments: [tiny]\nlevel: tune", "tune"),
    ],
)
def test_the_params_beside_the_experiments_decide_the_level(
    tmp_path: Path, params: str | None, level: Level
) -> None:
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(all_levels()), encoding="utf-8")
    if params is not None:
        (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    assert seeds(load_experiment("tiny", folder)) == SEEDS[level]


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


def test_a_sweep_of_another_algorithm_names_it_first() -> None:
    assert list(swept(algorithm="sgd", learning_rate=[0.1, 1.0]))[::3] == [
        *("joint-1ep-sgd", "joint-1ep-sgd-lr1"),
    ]
    assert suffix({"algorithm": "sgd", "learning_rate": 2.5e-4, "batch_size": 16}) == (
        "-sgd-lr0.00025-b16"
    )
    assert suffix({}) == ""


def test_a_sweep_keeps_what_a_method_changes_by_itself() -> None:
    values = settings()
    values["methods"]["joint-1ep"]["optimizer"] = {"schedule": "linear", "learning_rate": 0.3}
    values["sweeps"] = {"s": {"methods": ["joint-1ep"], "learning_rate": [0.2]}}
    found = every_method(Experiment.model_validate(values))
    assert list(found) == ["base", "joint-1ep", "merit-1d", "joint-shrunk", "joint-1ep-lr0.2"]
    assert found["joint-1ep-lr0.2"].optimizer == {"schedule": "linear", "learning_rate": 0.2}
    assert found["joint-1ep"].optimizer == {"schedule": "linear", "learning_rate": 0.3}


def test_an_optimizer_with_some_keys_changed() -> None:
    own = Optimizer(learning_rate=0.1, batch_size=2, warmup_ratio=0.5)
    found = overridden(own, {"algorithm": "sgd", "learning_rate": 3.0, "betas": [0.5, 0.6]}, "x")
    assert found == Optimizer(
        **{"algorithm": "sgd", "learning_rate": 3.0, "betas": (0.5, 0.6)},
        **{"batch_size": 2, "warmup_ratio": 0.5},
    )
    assert overridden(own, {}, "x") == own
    with pytest.raises(ValueError, match=r"^x\.learning_rate: input should be greater than 0\."):
        overridden(own, {"learning_rate": -1.0}, "x")
    with pytest.raises(ValueError, match=r"^x\.momentum: .*\. Known here: algorithm, learning_"):
        overridden(own, {"momentum": 0.9}, "x")


# --- other bases ----------------------------------------------------------------------------------


def test_the_weak_base_of_mini_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has 16 of 32 skills to learn, saw 750 steps of instructions, and runs the regime map."""
    monkeypatch.chdir(ROOT)
    main, weak = load_experiment("mini_vision"), load_experiment("mini_vision-weak")
    assert (weak.name, weak.data.source) == ("mini_vision-weak", "mini_world")
    changed = {"num_new_skills": 16, "num_conversations": 6000}
    assert weak.data.model_dump() == main.data.model_dump() | changed
    assert [phase.num_steps for phase in main.base.phases] == [450, 800, 1500]
    assert [phase.num_steps for phase in weak.base.phases] == [450, 800, 750]
    assert weak.base.architecture == main.base.architecture
    names = ["joint-1ep", "random-8", "merit-3d", "joint-shrunk"]
    assert list(weak.methods) == ["base"] + [
        name + tag for tag in ("-lr0.00025", "", "-lr0.002") for name in names
    ]
    own = weak.methods["merit-3d"]  # at the experiment's own rate: no method of the main base
    assert own == Method(partition="merit", axes=3, base="weak", may_diverge=True)
    assert weak.methods["joint-shrunk-lr0.002"] == Method(
        partition="shrunk", source="joint-1ep-lr0.002", match="merit-3d-lr0.002", base="weak"
    )
    assert (weak.sweeps, weak.studies) == ({}, {})
    assert {name for name, _ in variants(main)} == {
        name + tag for name in names for tag in ("-lr0.00025", "-lr0.002")
    }


def with_bases(**method: Any) -> Experiment:
    values = settings()
    phases = [
        {"name": name, "data": "labels", "trainable": ["decoder"], "num_steps": steps}
        | {"optimizer": {"learning_rate": 0.1, "batch_size": 2}}
        for name, steps in (("stage 1", 10), ("stage 2", 20))
    ]
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    architecture = {size: 8 for size in sizes} | {"num_key_value_heads": 8}
    values["base"] = {
        **{"architecture": architecture | {"initializer_range": 0.1}, "phases": phases},
    }
    values["bases"] = {"weak": {"data": {"seed": 3}, "phases": {"stage 2": {"num_steps": 5}}}}
    values["methods"]["joint-weak"] = {"partition": "joint", "base": "weak"} | method
    return Experiment.model_validate(values)


def test_a_method_may_start_from_another_base() -> None:
    whole = with_bases(seeds=[2])
    assert list(select(whole, "default").methods) == [
        *("base", "joint-1ep", "merit-1d", "joint-shrunk"),
    ]
    weak = select(whole, "default", "weak")
    assert weak.methods == {
        "base": Method(partition="base"),
        "joint-weak": Method(partition="joint", seeds=[2], base="weak"),
    }
    assert (weak.name, weak.data.seed) == ("tiny-weak", 3)
    assert [phase.num_steps for phase in weak.base.phases] == [10, 5]
    assert list(plan(weak).branches) == ["joint-1ep-s2"]


def test_another_base_is_refused_by_the_key_that_is_wrong() -> None:
    whole = with_bases()

    def refused(message: str, **changes: Any) -> None:
        other = whole.bases["weak"].model_copy(update=changes)
        with pytest.raises(ValueError, match=message):
            other_base(whole.model_copy(update={"bases": {"weak": other}}), "weak")

    refused(r"^bases\.weak\.phases: no phase is called 'stage2'\. Did you mean `stage \d`\?$",
            phases={"stage2": {}})  # fmt: skip
    refused(r"^bases\.weak: phases\.1\.num_steps: Input should be greater than 0$",
            phases={"stage 2": {"num_steps": 0}})  # fmt: skip
    refused(r"^bases\.weak: phases\.0\.steps: Extra inputs are not permitted$",
            phases={"stage 1": {"steps": 4}})  # fmt: skip
    refused(r"^bases\.weak: num_images: Input should be a valid integer$",
            data={"num_images": "3"})  # fmt: skip


def test_an_unknown_base_of_an_experiment_suggests_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    message = (
        r"^experiments/mini_vision\.yaml: key `bases`: no base is called 'week'\. "
        r"Did you mean `weak`\?$"
    )
    with pytest.raises(MeritError, match=message):
        load_experiment("mini_vision-week")


# --- the files as a whole -------------------------------------------------------------------------


def test_a_base_is_built_or_loaded_not_both(tmp_path: Path) -> None:
    values = settings()
    committed = yaml.safe_load((ROOT / "experiments" / "mini_vision.yaml").read_text("utf-8"))
    values["base"]["architecture"] = committed["base"]["architecture"]
    assert refusal(tmp_path, values) == (
        "key `base`: give exactly one of `architecture`, `checkpoint`, `hub`, `assemble`"
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
        ("experiments: [a]\nlevel: all", "key `level`: found 'all': Input should be 'default'"),
        ("experiments: [a]\nstudies: full", "unknown key `studies`. Known here: experiments, "),
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
