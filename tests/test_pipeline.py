"""dvc.yaml and what DVC sees: asked of DVC itself, in the workspace of a finished smoke run."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from merit.config import Base, load_params
from merit.dvc_processes import environment
from merit.plan import folder_of, plan_rows, planned_experiments, render
from merit.repro import COSTS, LAST, STUDIES, stages, waves
from merit.run.smoke import NAME
from merit.train.checkpoint import GO_ON
from tests.synthetic import experiment

ROOT = Path(__file__).parent.parent
PIPELINE = folder_of(NAME) / "dvc.yaml"
PLAN = folder_of(NAME) / "plan.yaml"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def changed(folder: Path, *stages: str) -> set[str]:
    """The stages, of these or of all, whose own inputs or outputs DVC finds changed."""
    status = run(folder, "dvc", "status", "--json", *stages)
    assert status.returncode == 0, status.stderr
    return set(json.loads(status.stdout))


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    before = path.read_text(encoding="utf-8")
    assert old in before
    path.write_text(before.replace(old, new, 1), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def kinds(stages: set[str]) -> set[str]:
    return {stage.rpartition(":")[2].partition("@")[0] for stage in stages}


# --- the files ----------------------------------------------------------------------------------


def test_the_pipelines_are_short() -> None:
    lines = [(ROOT / name).read_text(encoding="utf-8") for name in ("dvc.yaml", "pipeline.yaml")]
    assert sum(len(text.splitlines()) for text in lines) < 160


def test_metrics_are_those_of_all_experiments() -> None:
    params = load_params(ROOT / "params.yaml")
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["metrics"]
    assert listed == [f"reports/{name}/metrics.json" for name in params.experiments]


def test_side_by_side_every_stage_runs_once_and_after_what_it_needs() -> None:
    """`make repro` against DVC's own graph: a stage's inputs are made earlier, or in its chunk."""
    params = load_params(ROOT / "params.yaml")
    experiments = planned_experiments(params, ROOT / "experiments")
    flows = [*(waves(plan_rows(part, params.level)) for part in experiments), [[LAST]]]
    planned = [stage for flow in flows for stage in stages(flow)]
    edges = re.findall(r'"(.+)" -> "(.+)";', run(ROOT, "dvc", "dag", "--dot").stdout)
    assert sorted(planned) == sorted({stage for edge in edges for stage in edge})
    assert kinds(set(planned)) == set(COSTS)
    place = {  # experiment, wave, chunk, position
        stage: (x, w, c, k)
        for x, flow in enumerate(flows)
        for w, wave in enumerate(flow)
        for c, chunk in enumerate(wave)
        for k, stage in enumerate(chunk)
    }
    for needed, stage in edges:
        before, after = place[needed], place[stage]
        same_chunk = before[:3] == after[:3] and before[3] < after[3]
        earlier = before[0] == after[0] and before[1] < after[1]
        # studies wait for all of the experiment's parts, the pages for everything
        waited = ("mini_vision-weak/" in needed and after[1] >= STUDIES) or stage in LAST
        assert same_chunk or earlier or waited, f"{stage} needs {needed}"


def test_nothing_imports_dvc() -> None:
    files = [
        p for part in ("merit", "eval", "bin") for p in (ROOT / part).rglob("*") if p.is_file()
    ]
    lines = [line for p in files if p.suffix == ".py" for line in p.read_text().splitlines()]
    assert len(lines) > 5000
    assert not [line for line in lines if line.split()[:2] in (["import", "dvc"], ["from", "dvc"])]
    assert not [line for line in lines if line.strip().startswith("from dvc.")]


# --- what must be seen --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "seen", "unseen"),
    [
        # vocabulary: its words are the base's, too
        ("merit/mini/world/vocabulary.txt", "\n", "\nzebra\n", {"data", "base"}, {"train"}),
        # lm-eval task file
        ("eval/tasks/mini_text/mini_facts.yaml", "\n", "\n# x\n", {"prompts"}, {"evaluate"}),
        # rubric
        ("eval/rubric.py", "\n", "\n# x\n", {"score", "study"}, {"evaluate", "train"}),
        # scoring function
        ("eval/datasets.py", "\n", "\n# x\n", {"score", "prompts"}, {"train"}),
        # decoding rule
        (
            "eval/answering/generate.py",
            "do_sample=False",
            "do_sample=True",
            {"evaluate"},
            {"train"},
        ),
        # what judges, and what asks it
        ("eval/judge.py", "\n", "\n# x\n", {"score", "study"}, {"prompts", "evaluate"}),
        ("eval/engine.py", "\n", "\n# x\n", {"score", "prompts"}, {"evaluate", "train"}),
        # how a checkpoint is written
        ("merit/io/checkpoints.py", "\n", "\n# x\n", {"train", "merge"}, {"evaluate", "score"}),
        # the rule of verdicts
        ("eval/verdict.py", "\n", "\n# x\n", {"report", "index", "study"}, {"score"}),
        # a real source's file, where the world is generated
        (
            "merit/data/sources/vlguard.py",
            "\n",
            "\n# x\n",
            set(),
            {"data", "base", "encode", "train"},
        ),
        # training loop
        ("merit/train/loop.py", ".backward()", ".backward( )", {"train"}, {"data"}),
        # a plotting module's comment
        ("eval/report/style.py", "\n", "\n# x\n", {"report"}, {"train", "evaluate", "study"}),
        # a text world's file, where the world is of images
        ("merit/mini/text/lexicon.py", "\n", "\n# x\n", set(), {"data", "base", "train"}),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" in value else "",
)
def test_dvc_sees_what_a_change_reaches(
    smoke_folder: Path, file: str, old: str, new: str, seen: set[str], unseen: set[str]
) -> None:
    with edited(smoke_folder / file, old, new):
        found = kinds(changed(smoke_folder))
    assert seen <= found
    assert not unseen & found


def test_dvc_sees_a_changed_default_value_where_it_matters(smoke_folder: Path) -> None:
    default, other = "max_grad_norm: PositiveFloat = 1.0", "max_grad_norm: PositiveFloat = 0.1"
    settings = ("dvc", "repro", "-s", f"{PIPELINE}:settings")
    with edited(smoke_folder / "merit/config/training.py", default, other):
        assert changed(smoke_folder) == {f"{PIPELINE}:settings"}
        assert run(smoke_folder, *settings).returncode == 0
        found = kinds(changed(smoke_folder))
    assert {"base", "partition"} <= found
    assert not {"data", "encode", "evaluate", "prompts", "merge"} & found
    assert run(smoke_folder, *settings).returncode == 0
    assert changed(smoke_folder) == set()


JUDGE = "  judge: {url: http://here/v1, model: first, replay_only: true}\n"


def test_another_judge_scores_the_answers_that_there_are(smoke_folder: Path) -> None:
    settings_file = smoke_folder / f"experiments/{NAME}.yaml"
    settings = ("dvc", "repro", "-s", f"{PIPELINE}:settings")
    with edited(settings_file, "evaluation:\n", f"evaluation:\n{JUDGE}"):
        assert changed(smoke_folder) == {f"{PIPELINE}:settings"}
        assert run(smoke_folder, *settings).returncode == 0
        # parameters are part of every report, and some studies score models of their own
        assert kinds(changed(smoke_folder)) == {"score", "study", "report"}
    assert run(smoke_folder, *settings).returncode == 0
    assert changed(smoke_folder) == set()


def test_models_are_asked_again_where_they_are_held_in_another_way(smoke_folder: Path) -> None:
    settings = ("dvc", "repro", "-s", f"{PIPELINE}:settings")
    name = f"name: {NAME}\n"
    with edited(
        smoke_folder / f"experiments/{NAME}.yaml", name, f"{name}model: {{spread: true}}\n"
    ):
        assert run(smoke_folder, *settings).returncode == 0
        found = kinds(changed(smoke_folder))
    assert {"base", "encode", "gradients", "partition", "prompts", "study"} <= found
    assert not {"data", "score", "report"} & found
    assert run(smoke_folder, *settings).returncode == 0
    assert changed(smoke_folder) == set()


@pytest.mark.parametrize(
    ("base", "seen"),
    [
        (Base(hub="a/b", revision="c0ffee"), "merit/data/hub.py"),
        (Base(checkpoint="own/model"), "own/model/config.json"),
    ],
    ids=["hub", "folder"],
)
def test_a_finished_model_does_not_depend_on_the_miniatures(
    tmp_path: Path, base: Base, seen: str
) -> None:
    """Of a base that DVC has recorded: where it comes from is seen, small models' code is not."""
    shutil.copytree(ROOT / "merit", tmp_path / "merit", ignore=shutil.ignore_patterns("__pyc*"))
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=lambda *_: ["cache", "tmp"])
    shutil.copy(ROOT / "pipeline.yaml", tmp_path)
    rows = plan_rows(experiment("finished").model_copy(update={"base": base}), "default")
    for file, text in {
        "experiments/finished/plan.yaml": render(rows),
        "artifacts/finished/settings/base.json": "{}",
        "artifacts/finished/base/base.json": "{}",
        "own/model/config.json": "{\n}",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    pipeline = Path("experiments/finished/dvc.yaml")
    (tmp_path / pipeline).symlink_to("../../pipeline.yaml")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = run(tmp_path, "dvc", "commit", "--force", f"{pipeline}:base")
    assert done.returncode == 0, done.stderr
    for file, found in {"merit/mini/nets.py": set(), seen: {f"{pipeline}:base"}}.items():
        with edited(tmp_path / file, "\n", "\n\n"):
            assert changed(tmp_path, f"{pipeline}:base") == found


def test_a_missing_folder_of_studies_is_their_report_alone(smoke_folder: Path) -> None:
    """No stage before the studies misses it, and nothing else does."""
    studies = smoke_folder / "reports" / "studies" / NAME
    kept = smoke_folder / "reports" / "studies" / "renamed"
    studies.rename(kept)
    try:
        assert kinds(changed(smoke_folder)) == {"study", "report"}
    finally:
        kept.rename(studies)
    assert changed(smoke_folder) == set()


def test_leftovers_of_a_removed_method_do_not_matter(smoke_folder: Path) -> None:
    artifacts = smoke_folder / "artifacts" / NAME
    leftovers = [artifacts / "models" / "old-s1", artifacts / "branches" / "old-s1" / "old-s1-g0"]
    reports = smoke_folder / "reports" / "studies" / NAME / "old"
    for folder in (*leftovers, reports):
        folder.mkdir(parents=True)
        (folder / "left.json").write_text("{}")
    try:
        found = kinds(changed(smoke_folder))
        score = run(smoke_folder, "merit", "score", NAME)
    finally:
        for folder in (leftovers[0], leftovers[1].parent, reports):
            shutil.rmtree(folder)
    assert not {"train", "merge", "evaluate", "score"} & found
    assert score.returncode == 0, score.stderr
    assert changed(smoke_folder) == set()


# --- what is refused ----------------------------------------------------------------------------


def test_a_stale_plan_is_refused_by_every_stage(smoke_folder: Path) -> None:
    with edited(smoke_folder / f"experiments/{NAME}.yaml", "merit-1d:", "merit-one:"):
        refused = run(smoke_folder, "merit", "score", NAME)
    assert refused.returncode == 2
    assert "no method is called 'merit-1d'" in refused.stderr  # its other uses in the YAML
    with edited(smoke_folder / PLAN, "merit-1d-s1-g1", "merit-1d-s1-g9"):
        refused = run(smoke_folder, "merit", "score", NAME)
    assert refused.returncode == 2
    assert f"{PLAN} is stale" in refused.stderr
    assert "run `merit plan`" in refused.stderr


def test_a_branch_that_is_not_planned_is_refused(smoke_folder: Path) -> None:
    refused = run(smoke_folder, "merit", "train", NAME, "merit-1d-s1-g7")
    assert refused.returncode == 2
    assert f"has no 'merit-1d-s1-g7' among the branches of {PLAN}" in refused.stderr
    assert "Did you mean `merit-1d-s1-g" in refused.stderr


def test_one_branch_alone_and_one_model_with_what_it_needs(smoke_folder: Path) -> None:
    branches = smoke_folder / "artifacts" / NAME / "branches"
    inside = smoke_folder / folder_of(NAME)  # where the pages type it
    shutil.rmtree(branches / "merit-1d-s1")
    merge = run(inside, "dvc", "repro", "-s", "merge@merit-1d-s1")
    assert merge.returncode != 0
    alone = run(smoke_folder, "dvc", "repro", "-s", f"{PIPELINE}:train@merit-1d-s1-g1")
    assert alone.returncode == 0, alone.stderr
    assert [path.name for path in (branches / "merit-1d-s1").iterdir()] == ["merit-1d-s1-g1"]
    model = run(inside, "dvc", "repro", "merge@merit-1d-s1")
    assert model.returncode == 0, model.stderr
    names = sorted(path.name for path in (branches / "merit-1d-s1").iterdir())
    assert names == ["merit-1d-s1-g0", "merit-1d-s1-g1"]
    assert changed(smoke_folder) == set()


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_branch_that_is_told_to_stop_goes_on_to_the_same_bytes(smoke_folder: Path) -> None:
    """A signal to the process itself, as a cluster sends it; then the same command again."""
    branch = smoke_folder / "artifacts" / NAME / "branches" / "joint-1ep" / "joint-1ep-s1"
    before = contents(branch)
    shutil.rmtree(branch)
    command = [sys.executable, "-m", "merit", "train", NAME, "joint-1ep-s1"]
    with subprocess.Popen(command, cwd=smoke_folder, env=environment()) as training:
        while not list(branch.parent.glob(f".{branch.name}.*")):
            assert training.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)  # a few of its steps
        training.send_signal(signal.SIGTERM)
    assert training.returncode == GO_ON
    (partial,) = branch.parent.glob(f".{branch.name}.*")
    assert len(list(partial.glob("checkpoint-*"))) == 1
    assert not branch.exists()
    again = run(smoke_folder, "merit", "train", NAME, "joint-1ep-s1")
    assert again.returncode == 0, again.stderr
    assert contents(branch) == before
    assert changed(smoke_folder) == set()


def test_files_that_are_missing_inside_are_made_again(smoke_folder: Path) -> None:
    """A half-deleted artifacts folder: one `dvc repro` later every byte is what it was."""
    artifacts = smoke_folder / "artifacts" / NAME
    inside = [artifacts / part for part in ("encoded", "partition", "models/merit-1d-s1")]
    before = [contents(folder) for folder in inside]
    for folder in inside:
        next(path for path in sorted(folder.rglob("*")) if path.is_file()).unlink()
    done = run(smoke_folder / folder_of(NAME), "dvc", "repro", "merge@merit-1d-s1")
    assert done.returncode == 0, done.stderr
    assert [contents(folder) for folder in inside] == before
    assert changed(smoke_folder) == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("repro score", "didn't change, skipping"),
        ("repro evaluate@merit-1d-s1", "didn't change, skipping"),
        ("metrics show", "joint-1ep"),
        ("plots show", "file://"),
        ("dag", "evaluate@merit-1d-s1"),
    ],
)
def test_the_pages_commands_as_they_are_typed(
    smoke_folder: Path, arguments: str, said: str
) -> None:
    """README's lines for DVC, with this experiment's names in place of mini_vision's."""
    pages = (ROOT / "README.md").read_text(encoding="utf-8").replace("merit-3d-s1", "merit-1d-s1")
    assert f"dvc {arguments} " in pages
    where = smoke_folder if arguments.endswith("show") else smoke_folder / folder_of(NAME)
    if arguments == "metrics show":  # dvc.yaml names those of params.yaml's experiments alone
        arguments = f"{arguments} reports/{NAME}/metrics.json"
    wide = {**environment(), "COLUMNS": "400", "DVC_PAGER": "cat"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments.split()],
        cwd=where,
        env=wide,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout + done.stderr
    shutil.rmtree(smoke_folder / "dvc_plots", ignore_errors=True)
    assert changed(smoke_folder) == set()


def test_one_study_and_one_experiment(smoke_folder: Path, tmp_path: Path) -> None:
    inside = smoke_folder / folder_of(NAME)
    study, lock = smoke_folder / "reports" / "studies" / NAME / "cost", inside / "dvc.lock"
    all_of_it = run(inside, "dvc", "repro")
    assert "Stage 'report@default' didn't change" in all_of_it.stdout + all_of_it.stderr
    assert "index" not in all_of_it.stdout + all_of_it.stderr
    shutil.copyfile(lock, tmp_path / "dvc.lock")
    study.rename(tmp_path / "cost")
    assert changed(smoke_folder) == {f"{PIPELINE}:study@cost", f"{PIPELINE}:report@default"}
    done = run(inside, "dvc", "repro", "study@cost")
    assert done.returncode == 0, done.stderr
    assert (study / "result.json").is_file()
    # its timings are others; what follows from the first ones stays
    shutil.rmtree(study)
    (tmp_path / "cost").rename(study)
    shutil.copyfile(tmp_path / "dvc.lock", lock)
    assert changed(smoke_folder) == set()


def test_a_removed_experiment_breaks_nothing(smoke_folder: Path) -> None:
    """Its folder is no pipeline after `merit plan`; before, it asks for that."""
    left = smoke_folder / "experiments" / "old"
    shutil.copytree(smoke_folder / folder_of(NAME), left, symlinks=True)
    with edited(left / "plan.yaml", f"x: {NAME}", "x: old"):
        refused = run(left, "dvc", "repro", "-s", "settings")
    assert refused.returncode != 0
    assert "no experiment 'old' in params.yaml" in refused.stderr
    assert "run `merit plan`" in refused.stderr
    planned = run(smoke_folder, "merit", "plan")
    assert planned.stdout == "experiments/old/plan.yaml: removed\n"
    assert changed(smoke_folder) == set()
    shutil.rmtree(left)


def test_outside_of_the_environment_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "bin" / "merit", tmp_path / "bin" / "merit")
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\nexit 1\n")
    empty.chmod(0o755)
    refused = subprocess.run(
        [str(tmp_path / "bin" / "merit"), "data", "mini_vision"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr == (
        "merit: error: no environment here: run `make setup`, or activate the one that merit is "
        "installed in\n"
    )
