"""The generated pipeline: its graph, what a change touches, and the jobs behind pending stages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from merit import pipeline
from merit.config import Experiment, Params, load_experiment, load_params
from merit.errors import MeritError
from merit.graph import KINDS, code_files, experiment_stages, render
from merit.io.artifacts import Artifacts, write_json
from merit.launch import stage_module
from merit.methods import plan
from merit.pipeline import branch_jobs, time_by_stage

ROOT = Path(__file__).parent.parent


def experiment(**methods: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "data": {
                **{"source": "mini_world", "seed": 0, "num_examples": 8, "num_images": 8},
                **{"num_conversations": 1, "num_questions": 1, "num_validation_questions": 1},
            },
            "base": {"checkpoint": "theta0"},
            "gradients": {},
            "training": {
                "trainable": ["decoder"],
                "optimizer": {"learning_rate": 0.1, "batch_size": 2},
            },
            "methods": methods,
            "evaluation": {"benchmarks": ["count"]},
            "report": {"title": "Tiny", "paper_table": "table02"},
        }
    )


@pytest.fixture
def tiny() -> Experiment:
    return experiment(
        **{
            "base": {"partition": "base"},
            "joint-0.5ep": {"partition": "joint", "epochs": 0.5},
            "joint-1ep": {"partition": "joint", "seeds": [1, 2]},
            "soup-2": {"partition": "soup", "members": 2},
            "merit-1d": {"partition": "merit", "axes": 1},
            "joint-shrunk": {"partition": "shrunk", "source": "joint-1ep", "match": "merit-1d"},
        }
    )


def items(stages: dict[str, Any], kind: str) -> list[str]:
    """The last word of each command of `kind`, in order."""
    commands = [stage["cmd"].split() for stage in stages.values()]
    return [words[-1] for words in commands if words[3] == kind]


def paths(stage: dict[str, Any], key: str) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in stage[key]}


def test_dvc_yaml_is_what_the_settings_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params = load_params()
    experiments = {name: load_experiment(name) for name in params.experiments}
    assert Path("dvc.yaml").read_text(encoding="utf-8") == render(params, experiments), (
        "dvc.yaml is stale: run `merit repro`"
    )


def test_every_branch_and_model_has_exactly_one_stage(tiny: Experiment) -> None:
    stages = experiment_stages(tiny)
    planned = plan(tiny)
    branches = [
        "joint-0.5ep-s1",
        "joint-1ep-s1",
        "joint-1ep-s2",
        "merit-1d-s1-g0",
        "merit-1d-s1-g1",
    ]
    assert list(planned.branches) == branches
    assert items(stages, "train") == branches
    assert items(stages, "merge") == list(planned.models)
    assert len(stages) == 7 + len(planned.branches) + len(planned.models)
    assert stages["train-tiny-joint-0_5ep-s1"]["cmd"] == "python -m merit train tiny joint-0.5ep-s1"
    assert paths(stages["train-tiny-joint-0_5ep-s1"], "outs") == {
        "artifacts/tiny/branches/joint-0.5ep-s1"
    }


def test_every_dependency_is_code_or_an_output_from_upstream(tiny: Experiment) -> None:
    written: set[str] = set()
    for name, stage in experiment_stages(tiny).items():
        for dependency in paths(stage, "deps"):
            if dependency.startswith("artifacts/"):
                parents = {dependency, *map(str, Path(dependency).parents)}
                assert parents & written, f"{name} reads {dependency} before it is written"
        outs = paths(stage, "outs")
        assert not outs & written
        written |= outs


def test_a_manifest_touches_one_training_and_its_merges(tiny: Experiment) -> None:
    stages = experiment_stages(tiny)
    manifest = "artifacts/tiny/partition/manifests/joint-1ep-s2.json"
    readers = {name for name, stage in stages.items() if manifest in stage["deps"]}
    assert readers == {
        "train-tiny-joint-1ep-s2",
        "merge-tiny-joint-1ep-s2",
        "merge-tiny-soup-2-s1",
    }
    whole = {name for name, stage in stages.items() if "artifacts/tiny/partition" in stage["deps"]}
    assert whole == {"report-tiny"}


def test_a_settings_block_reaches_the_stages_that_read_it(tiny: Experiment) -> None:
    # only keys that the YAML has: DVC cannot look up one that is left to its default
    assert not any("merge_weights" in str(s) for s in experiment_stages(tiny).values())
    given = Experiment.model_validate({**tiny.model_dump(), "merge_weights": "samples"})
    stages = experiment_stages(given)
    readers: dict[str, set[str]] = {}
    for stage in stages.values():
        for entry in stage.get("params", []):
            for block in entry.get("experiments/tiny.yaml", []):
                readers.setdefault(block, set()).add(stage["cmd"].split()[3])
    assert readers == {
        "data": {"data"},
        "base": {"base"},
        "gradients": {"gradients"},
        "training.trainable": {"gradients"},
        "methods": {"partition", "evaluate", "report"},
        "training": {"partition", "train"},
        "merge_weights": {"merge"},
        "evaluation": {"evaluate"},
        "report": {"report"},
    }


def test_shrunk_model_reads_its_source_and_its_match(tiny: Experiment) -> None:
    stage = experiment_stages(tiny)["merge-tiny-joint-shrunk-s1"]
    assert {path for path in stage["deps"] if path.startswith("artifacts/")} == {
        "artifacts/tiny/base",
        "artifacts/tiny/models/joint-1ep-s1",
        "artifacts/tiny/models/merit-1d-s1",
    }


def test_render_is_yaml_with_git_kept_reports(tiny: Experiment) -> None:
    params = Params(experiments=["tiny"])
    text = render(params, {"tiny": tiny})
    content = yaml.safe_load(text)
    assert list(content["stages"]) == list(experiment_stages(tiny))
    assert content["stages"]["report-tiny"]["outs"] == [{"reports/tiny": {"cache": False}}]
    assert content["stages"]["evaluate-tiny"]["outs"] == [
        {"artifacts/tiny/evaluation/answers": {"persist": True}},
        "artifacts/tiny/evaluation/predictions",
        "artifacts/tiny/evaluation/scores.json",
    ]
    assert content["metrics"] == ["reports/tiny/metrics.json"]
    assert text == render(params, {"tiny": tiny})


def test_two_names_for_one_stage_are_refused() -> None:
    twins = {"merit.1d": {"partition": "merit", "axes": 1}, "merit_1d": {"partition": "joint"}}
    with pytest.raises(MeritError, match=r"tiny\.yaml: two stages .* 'merge-tiny-merit_1d-s1'"):
        experiment_stages(experiment(**twins))


def test_code_files_follow_imports(tmp_path: Path) -> None:
    files = {
        "merit/stages/train.py": (
            "import numpy\nfrom merit import training\nfrom merit.config import Base\n"
            "def run():\n    from merit.core import merge\n"
        ),
        "merit/training.py": "from .models import load\nimport eval.score\n",
        "merit/models.py": "import merit.training\n",
        "merit/core/merge/__init__.py": "from .linear import average\n",
        "merit/core/merge/linear.py": "",
        "merit/config.py": "import merit.unrelated\n",
        "merit/unrelated.py": "",
        "eval/score.py": "import evaluation\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert code_files("merit.stages.train", root=tmp_path) == [
        "eval/score.py",
        "merit/core/merge/__init__.py",
        "merit/core/merge/linear.py",
        "merit/models.py",
        "merit/stages/train.py",
        "merit/training.py",
    ]
    assert code_files("merit.stages.absent", root=tmp_path) == []
    (tmp_path / "merit/models.py").write_text("x = 1\ndef (\n")
    with pytest.raises(MeritError, match=r"merit/models\.py, line 2: "):
        code_files("merit.stages.train", root=tmp_path)


def test_each_stage_depends_on_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    modules = {kind: stage_module(kind).replace(".", "/") + ".py" for kind in KINDS}
    # the other base is made by the same code as the first: data, base, encoded mixture, gradients
    shared = {"other_base": {modules[kind] for kind in ("data", "base", "encode", "gradients")}}
    for kind, own in modules.items():
        files = code_files(stage_module(kind))
        assert set(modules.values()) & set(files) == {own} | shared.get(kind, set())
        assert "merit/config.py" not in files


def test_jobs_follow_from_pending_branches(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(Artifacts("tiny").manifest("merit-1d-s1-g1"), {"num_tokens": 70})
    write_json(Artifacts("tiny").manifest("joint-1ep-s2"), {"num_tokens": 140})
    jobs = branch_jobs({"tiny": tiny}, ["train-tiny-merit-1d-s1-g1"])
    assert [(job.name, job.cost) for job in jobs] == [
        ("train-tiny-merit-1d-s1-g1", 70),
        ("merge-tiny-merit-1d-s1", 1),
        ("merge-tiny-joint-shrunk-s1", 1),  # it is matched to merit-1d's displacement
    ]
    assert jobs[1].after == ("train-tiny-merit-1d-s1-g0", "train-tiny-merit-1d-s1-g1")
    assert jobs[2].after == ("merge-tiny-joint-1ep-s1", "merge-tiny-merit-1d-s1")

    jobs = branch_jobs({"tiny": tiny}, ["train-tiny-joint-1ep-s2", "merge-tiny-base"])
    assert [job.name for job in jobs] == [
        "train-tiny-joint-1ep-s2",
        "merge-tiny-base",
        "merge-tiny-joint-1ep-s2",
        "merge-tiny-soup-2-s1",
    ]
    assert branch_jobs({"tiny": tiny}, []) == []


def test_time_by_stage_sums_items(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Artifacts("tiny").folder / "timings"
    write_json(folder / "data.json", {"stage": "data", "seconds": 61.2, "peak_memory_mb": 300})
    for group, seconds in ((0, 20), (1, 25)):
        timing = {"stage": "train", "seconds": seconds, "peak_memory_mb": 500 + group}
        write_json(folder / f"train-merit-1d-s1-g{group}.json", timing)
    write_json(folder / "train-removed.json", {"stage": "train", "seconds": 9})
    assert [line.split() for line in time_by_stage({"tiny": tiny}).splitlines()[1:]] == [
        ["data-tiny", "1", "1:01", "300"],
        ["train-tiny", "2", "0:45", "501"],
    ]
    shutil.rmtree(folder)
    assert len(time_by_stage({"tiny": tiny}).splitlines()) == 1


def test_restore_takes_only_runs_with_the_present_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage = {"cmd": "cp input output", "deps": ["input"], "outs": ["output"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"train-x": stage}}))
    _dvc("init", "--no-scm", "--quiet")
    Path("input").write_text("first")
    assert pipeline.pending(("train",)) == ["train-x"]
    assert pipeline.pending(("merge",)) == []
    _dvc("repro", "--quiet")
    assert pipeline.pending() == []

    Path("input").write_text("second")  # never run: nothing to restore, least of all `first`
    pipeline._restore(["train-x"])
    assert not Path("output").exists()
    _dvc("repro", "--quiet")
    assert Path("output").read_text() == "second"

    Path("input").write_text("first")
    pipeline._restore(["train-x"])
    assert Path("output").read_text() == "first"
    assert pipeline.pending() == []


def _dvc(*arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, env=pipeline._environment(), capture_output=True, check=True)


def test_targets_side_by_side_are_all_recorded_and_the_failed_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # all at work at once, upon what one stage has made, as studies are
    stages = {
        name: {"cmd": f"echo {name}; sleep 1; cp made {name}", "deps": ["made"], "outs": [name]}
        for name in ("a", "b", "c")
    }
    stages["first"] = {"cmd": "cp input made", "deps": ["input"], "outs": ["made"]}
    stages["broken"] = {"cmd": "echo no such thing >&2 && false", "deps": ["made"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    _dvc("init", "--no-scm", "--quiet")
    Path("input").write_text("text")
    pipeline._dvc_repro(["first"], 3)
    with pytest.raises(MeritError, match="`dvc repro broken` failed"):
        pipeline._dvc_repro(["a", "broken", "b", "c"], 4, alone=True)
    assert pipeline.pending() == ["broken"]
    assert {Path(name).read_text() for name in ("a", "b", "c")} == {"text"}
    assert "no such thing" in capfd.readouterr().out
    pipeline._dvc_repro([], 2)  # nothing to do is nothing done
