"""`merit repro`: which experiments, their place in params.yaml, the hub, and GPUs for each slot."""

from __future__ import annotations

import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from merit import repro
from merit.choice import chosen, put_in, take_out, with_names, without_name
from merit.config import Launch, Params, load_experiment, load_params
from merit.dvc_processes import Places, experiment_of
from merit.errors import MeritError
from merit.launch.local import make_slots
from merit.run import cli
from merit.run.access import needs_hub, set_access, uses_hub

ROOT = Path(__file__).parents[1]
FLOW = "# why\nexperiments: [a, b]  # these\nworkers: 2\n"
BLOCK = "experiments:\n  - a\n  - b  # last\nworkers: 2\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings alone, as the current folder."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- params.yaml ----------------------------------------------------------------------------------


def test_the_text_keeps_its_comments() -> None:
    assert with_names(FLOW, ["c", "d"]) == "# why\nexperiments: [a, b, c, d]  # these\nworkers: 2\n"
    assert with_names(BLOCK, ["c"]) == "experiments:\n  - a\n  - b  # last\n  - c\nworkers: 2\n"
    assert with_names("experiments:\n- a", ["b", "c"]) == "experiments:\n- a\n- b\n- c"
    assert without_name(FLOW, "b") == "# why\nexperiments: [a]  # these\nworkers: 2\n"
    assert without_name(FLOW, "a") == "# why\nexperiments: [b]  # these\nworkers: 2\n"
    assert without_name(BLOCK, "b") == "experiments:\n  - a\nworkers: 2\n"
    assert without_name(BLOCK, "a") == "experiments:\n  - b  # last\nworkers: 2\n"


def test_put_in_once_and_taken_out(folder: Path) -> None:
    before = (folder / "params.yaml").read_text(encoding="utf-8")
    assert put_in(["mini_text", "text_flan_3b"]) == ["text_flan_3b"]
    assert load_params().experiments[-2:] == ["mini_text", "text_flan_3b"]
    assert put_in(["text_flan_3b"]) == []
    take_out(["text_flan_3b"])
    assert (folder / "params.yaml").read_text(encoding="utf-8") == before
    take_out(load_params().experiments)
    assert load_params().experiments == ["mini_text"]  # one stays


def test_odd_lists_are_understood(folder: Path) -> None:
    text = 'experiments: ["mini_text" ,\n  ]\n'
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    assert put_in(["mini_vision"]) == ["mini_vision"]  # odd, and still understood
    assert load_params().experiments == ["mini_text", "mini_vision"]
    text = "experiments: [\n  mini_text  # a comment\n  , mini_sources]\n"
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    take_out(["mini_sources"])
    assert load_params().experiments == ["mini_text"]


@pytest.mark.parametrize(
    ("name", "rehearse", "message"),
    [
        ("mini_visoin", False, r"no such experiment\. Did you mean `mini_vision`\?"),
        ("text_flan_3B", True, r"no such experiment\. Did you mean `text_flan_3b`\?"),
        ("mini_vision-weak", False, "a part of mini_vision; `merit repro mini_vision` runs it"),
        ("mini_vision-waek", False, r"no base is called 'waek'\. Did you mean `weak`\?"),
        ("mini_text", True, "is generated and needs no rehearsal"),
    ],
)
def test_what_is_no_experiment(folder: Path, name: str, rehearse: bool, message: str) -> None:
    before = (folder / "params.yaml").read_bytes()
    with pytest.raises(MeritError, match=message):
        repro.repro([name], rehearse)
    assert (folder / "params.yaml").read_bytes() == before


def test_an_experiment_with_a_mistake_is_not_put_in(folder: Path) -> None:
    path = folder / "experiments" / "text_flan_3b.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("max_tokens:", "max_tokns:"))
    with pytest.raises(MeritError, match=r"text_flan_3b\.yaml: unknown key `encoding\.max_tokns`"):
        repro.repro(["text_flan_3b"])
    assert "text_flan_3b" not in load_params().experiments


def test_a_rehearsal_without_a_name(folder: Path) -> None:
    with pytest.raises(MeritError, match="name what is to be rehearsed"):
        repro.repro([], rehearse=True)


def test_a_rehearsal_by_either_name(folder: Path) -> None:
    names = ["text_flan_3b", "text_flan_3b-rehearsal"]
    assert chosen(names, rehearse=True) == ["text_flan_3b-rehearsal"]
    assert chosen(names[1:], rehearse=False) == ["text_flan_3b-rehearsal"]


def test_a_rehearsal_is_named_while_it_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "params.yaml").read_bytes()
    x = "text_flan_3b-rehearsal"
    seen = {}

    def run_all(params: Params, names: list[str], everything: bool) -> None:
        seen.update(names=names, known=params.experiments, everything=everything)
        assert (folder / "experiments" / x / "dvc.yaml").is_symlink()

    monkeypatch.setattr(repro, "run_all", run_all)
    cli.main(["repro", "text_flan_3b", "--rehearse"])
    assert seen["names"] == [x]
    assert seen["known"] == ["mini_vision", "mini_sources", "mini_sources_scaled", "mini_text", x]
    assert seen["everything"] is False
    assert (folder / "params.yaml").read_bytes() == before
    assert not (folder / "experiments" / x / "dvc.yaml").exists()
    assert f"params.yaml: {x} is among its `experiments`" in capsys.readouterr().out


def test_the_pages_wait_for_reports_that_are_missing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = Params(experiments=["mini_text", "mini_vision"])
    reports = folder / "artifacts" / "reports"
    reports.mkdir(parents=True)
    (reports / "mini_text.json").touch()
    assert repro.last_of(params, ["mini_text"]) == ["track"]
    assert "wait for mini_vision (`make repro`)" in capsys.readouterr().out
    (reports / "mini_vision.json").touch()
    assert repro.last_of(params, ["mini_text"]) == ["index", "track"]
    assert repro.last_of(params, ["text_flan_3b-rehearsal"]) == []


# --- the hub --------------------------------------------------------------------------------------

HUB_STAGES = {
    "mini_vision": set(),
    "mini_text": set(),
    "vision_flan_3b": {"data", "base"},
    "vision_flan_3b_llava": {"data", "base"},
    "text_flan_3b": {"data", "base", "evaluate", "study"},
    "template_text": {"evaluate", "study"},
}


@pytest.mark.parametrize(("name", "stages"), HUB_STAGES.items())
def test_stages_that_may_ask_the_hub(name: str, stages: set[str]) -> None:
    experiment = load_experiment(name, ROOT / "experiments")
    assert {stage for stage in cli.STAGES if needs_hub(experiment, stage)} == stages
    assert uses_hub(experiment) is bool(stages)


def test_what_lies_here_needs_no_hub() -> None:
    whole = load_experiment("text_flan_3b", ROOT / "experiments")
    data = whole.data.model_copy(update={"download": False})
    evaluation = whole.evaluation.model_copy(update={"text_data": "texts"})
    local = whole.model_copy(update={"data": data, "evaluation": evaluation})
    assert {stage for stage in cli.STAGES if needs_hub(local, stage)} == {"base"}


@pytest.mark.parametrize(
    ("users", "allowed", "found"), [(None, True, "0"), (None, False, "1"), ("1", True, "1")]
)
def test_the_users_word_goes_first(
    monkeypatch: pytest.MonkeyPatch, users: str | None, allowed: bool, found: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", users or "")
    if users is None:
        del os.environ["HF_HUB_OFFLINE"]
    set_access(allowed)
    assert os.environ["HF_HUB_OFFLINE"] == found


def test_a_stage_opens_the_hub_for_what_names_something_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(["text_flan_3b"])
    cli.main(["plan"])
    seen = {}

    def stage(name: str, item: str | None) -> None:
        seen[name] = (os.environ["HF_HUB_OFFLINE"], os.environ["HF_HUB_DISABLE_TELEMETRY"])
        del os.environ["HF_HUB_OFFLINE"]

    monkeypatch.setattr("merit.data.stage.run", stage)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    del os.environ["HF_HUB_OFFLINE"]
    for name in ("text_flan_3b", "mini_text"):
        cli.main(["data", name])
    assert seen == {"text_flan_3b": ("0", "1"), "mini_text": ("1", "1")}


# --- GPUs -----------------------------------------------------------------------------------------


def test_each_slot_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    monkeypatch.setenv("MERIT_FORK", "socket")
    slots = make_slots(Launch(gpus_per_branch=2), ["0", "1", "2", "3", "4"], workers=4)
    assert slots == [["0", "1"], ["2", "3"]]
    places = Places(slots, on_gpu={"big"}, alone={"big"})
    both = Barrier(2, timeout=20)  # two chunks are in the block at once

    def gpus(_: int) -> tuple[str, bool]:
        with places.place(["experiments/big/dvc.yaml:train@a"]) as variables:
            both.wait()
            return variables["CUDA_VISIBLE_DEVICES"], "MERIT_FORK" in variables

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(gpus, range(4))) == {("0,1", False), ("2,3", False)}
    with places.place(["experiments/mini/dvc.yaml:train@a"]) as variables:
        assert (variables["CUDA_VISIBLE_DEVICES"], variables["MERIT_FORK"]) == ("all", "socket")
    assert [experiment_of(s) for s in ("experiments/x-weak/dvc.yaml:a@b", "index")] == [
        "x-weak",
        "",
    ]


def gpus_per_branch(folder: Path, number: int) -> None:
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    block = f"launch:\n  gpus_per_branch: {number}\n  backend:"
    changed = re.sub(r"launch:.*\n  backend:", block, text)
    (folder / "params.yaml").write_text(changed, encoding="utf-8")


@pytest.mark.parametrize(
    ("visible", "wanted", "rank", "started"),
    [
        ("0,1,2", 2, None, True),
        ("0,1,2", 1, None, False),
        ("", 2, None, False),  # the CPU trains
        ("0,1", 2, "0", False),  # a rank already
    ],
)
def test_a_branch_on_several_gpus_starts_ranks(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    wanted: int,
    rank: str | None,
    started: bool,
) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: commands.append(command))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if rank:
        monkeypatch.setenv("RANK", rank)
    gpus_per_branch(folder, wanted)
    cli.become_ranks("mini_text", "merit-2d-s1-g0")
    ranks = (sys.executable, "-m", "merit.launch.ranks", "2", "train", "mini_text")
    assert commands == [(*ranks, "merit-2d-s1-g0")] * started


def test_a_branch_with_too_few_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    gpus_per_branch(folder, 4)
    with pytest.raises(MeritError, match="4 GPUs are asked for, 1 are visible here"):
        cli.become_ranks("mini_text", "merit-2d-s1-g0")
