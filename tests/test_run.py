"""The executor: keys, the store, processes side by side, what is kept and what is run again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from merit.config import Launch, Params
from merit.errors import MeritError
from merit.io.artifacts import KEY, Artifacts
from merit.io.locks import exclusive
from merit.run import keys, store
from merit.run.execute import Executor, check_items, stage_settings
from merit.run.pool import Pool, describe_slots, gpu_slots
from merit.run.stages import STAGES, Context, Stage
from merit.run.store import Item, NotReady

ROOT = Path(__file__).parent.parent


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("def f(x):\n    return x + 1\n", True),
        (
            '"""Other words."""\n\n\ndef f(x):\n    """Docstring."""\n    return x + 1  # why\n',
            True,
        ),
        ("def f(x):\n    return x + 2\n", False),
        ('def f(x):\n    print("""not a docstring""")\n    return x + 1\n', False),
    ],
)
def test_comments_and_docstrings_are_no_code(tmp_path: Path, text: str, same: bool) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text('"""Words."""\ndef f(x):\n    return x + 1\n')
    second.write_text(text)
    assert (keys.fingerprint(first) == keys.fingerprint(second)) is same


def test_code_of_a_stage_is_what_it_imports_and_the_data_beside_it() -> None:
    train = {str(path) for path in keys.code_files("merit.train.branch")}
    assert {"train/loop.py", "train/optimizers.py", "io/checkpoints.py"} <= train
    assert not any(
        path.startswith(("config/", "run/", "eval/", "mini/", "merge/")) for path in train
    )
    world = {str(path) for path in keys.code_files("merit.mini.world.write_world")}
    assert "mini/world/vocabulary.txt" in world
    prompts = {str(path) for path in keys.code_files("merit.eval.stages.prompts")}
    assert {"eval/benchmarks.yaml", "eval/tasks/mini_text/likelihood.yaml"} <= prompts


@pytest.fixture(scope="module")
def mini() -> Any:
    from merit.config import load_experiment

    return load_experiment("smoke", ROOT / "experiments")


# a setting, and the stages of which it decides the settings part of the key
REACH: list[tuple[dict[str, Any], set[str]]] = [
    ({"gradients": {"stride": 7}}, {"gradients", "studies"}),
    ({"training": {"optimizer": {"learning_rate": 1.0e-3}}}, {"partition", "studies"}),
    ({"encoding": {"min_pixels": 12544}}, {"base", "encode", "partition"}),
    ({"merge_weights": "samples"}, {"merge", "studies"}),
    ({"evaluation": {"max_new_tokens": 8}}, {"prompts", "score", "studies", "report"}),
    ({"data": {"num_questions": 13}}, {"data", "report"}),
    ({"report": {"title": "Another"}}, {"report"}),
]


@pytest.mark.parametrize(("change", "reached"), REACH)
def test_a_setting_changes_the_keys_of_its_stages_and_no_others(
    mini: Any, change: dict[str, Any], reached: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from merit.config.experiment import merged

    changed = type(mini).model_validate(merged(mini.model_dump(), change))
    # of inputs that are not there, only the names
    for name in ("hash_of", "_current", "_base_hash", "_said", "file_hash"):
        monkeypatch.setattr(f"merit.run.stages.{name}", lambda *_: {"failure": None})
    monkeypatch.setattr("merit.run.stages.code_hash", lambda _: "")
    monkeypatch.setattr("merit.run.stages._train", lambda *_: (None, {}))

    def settings(experiment: Any) -> dict[str, str]:
        context = Context.of(experiment)
        return {
            stage.name: stage.key(context, stage.names(context)[0])["settings"]
            for stage in STAGES.values()
            if stage.name != "train"  # its settings are the manifest, of the partition
        }

    before, after = settings(mini), settings(changed)
    assert {name for name in before if before[name] != after[name]} == reached


def test_dvc_reads_defaults_and_the_code_of_every_stage(mini: Any) -> None:
    found = stage_settings(Context.of(mini))
    assert found["training"]["optimizer"]["betas"] == [0.9, 0.999]
    assert found["studies"]["readiness"]["thresholds"]["barrier_share"] == 0.01
    assert set(found["code"]) == set(STAGES)
    named = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert all(f"code.{stage}" in named for stage in STAGES)
    blocks = re.findall(r"json: \[([^\]]*)\]", named)
    keys = {key.split(".")[0] for block in blocks for key in re.split(r",\s*", block)}
    assert keys <= set(found)


# --- the store ------------------------------------------------------------------------------------

KEY_A = {"settings": "a", "inputs": "b", "code": "c"}
KEY_B = KEY_A | {"settings": "other"}


@pytest.fixture
def item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Item:
    monkeypatch.chdir(tmp_path)
    folder = Path("artifacts/x/things/one")
    return Item("x", "things", "one", (folder,), folder / KEY)


def write(item: Item, text: str) -> None:
    item.outputs[0].mkdir(parents=True, exist_ok=True)
    (item.outputs[0] / "text").write_text(text)


def test_changed_and_changed_back(item: Item) -> None:
    for key, text in ((KEY_A, "first"), (KEY_B, "second")):
        assert not item.take(key)
        item.remove()
        write(item, text)
        item.finish(key)
        assert item.is_current(key)
    assert item.changed(KEY_A) == "changed: settings"
    assert item.take(KEY_A)
    assert (item.outputs[0] / "text").read_text() == "first"
    item.remove()
    assert item.take(KEY_B)
    assert (item.outputs[0] / "text").read_text() == "second"


def test_a_damaged_entry_is_made_again(item: Item, capsys: pytest.CaptureFixture[str]) -> None:
    write(item, "first")
    item.finish(KEY_A)
    item.remove()
    stored = item.place(KEY_A) / "one" / "text"
    stored.write_text("frist")
    assert not item.take(KEY_A)
    assert "one/text: not what its record says" in capsys.readouterr().err
    assert not item.outputs[0].exists()
    assert not item.place(KEY_A).exists()


def test_a_file_cut_short_is_out_of_date(item: Item) -> None:
    write(item, "first")
    item.finish(KEY_A)
    (item.outputs[0] / "text").unlink()  # a link: the store keeps its own
    write(item, "f")
    assert item.changed(KEY_A) == "its files are not those of its record"


@pytest.mark.parametrize(
    "record",
    [
        *('{"key": ', "[]", "{}", '"x"', '{"key": {}, "files": null, "hash": ""}'),
        *('{"key": {}, "files": {"a": 1}, "hash": ""}', '{"key": {}, "files": {}, "hash": "a"}'),
    ],
)
def test_a_damaged_record_is_refused_by_name(item: Item, record: str) -> None:
    write(item, "first")
    item.finish(KEY_A)
    item.record.unlink()  # a link: the store keeps its own
    item.record.write_text(record)
    with pytest.raises(MeritError, match=r"^artifacts/x/things/one/key\.json: damaged; bring"):
        item.is_current(KEY_A)
    item.remove()
    assert item.take(KEY_A)


@pytest.mark.parametrize(("name", "text"), [("text", "frist"), ("surplus", ""), ("text", None)])
def test_what_is_not_as_recorded_is_named(item: Item, name: str, text: str | None) -> None:
    write(item, "first")
    item.finish(KEY_A)
    item.check()
    file = item.outputs[0] / name
    file.unlink(missing_ok=True)
    if text is not None:
        file.write_text(text)
    with pytest.raises(MeritError, match=rf"^{file}: not what its record says; bring"):
        item.check()
    item.check("one/other")


def test_without_hard_links_results_are_copied(
    item: Item, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(store, "_copied", False)
    write(item, "first")
    item.finish(KEY_A)
    item.remove()
    assert item.take(KEY_A)
    assert capsys.readouterr().err.count("no hard links here") == 1


def test_prune_removes_what_the_plan_does_not_name(tmp_path: Path) -> None:
    for name in ("run/a", "run/b", "old/c", ".work/d"):
        (tmp_path / name).mkdir(parents=True)
    removed = store.prune(tmp_path, [tmp_path / "run/a"])
    assert removed == [tmp_path / "old", tmp_path / "run/b"]
    assert (tmp_path / "run/a").is_dir()
    assert (tmp_path / ".work/d").is_dir()


# --- the executor ---------------------------------------------------------------------------------


class Things:
    """A stage of five things in a folder of its own."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.folder, self.names = folder, ["a", "b", "c", "d", "e"]
        self.settings = dict.fromkeys(self.names, 1)
        self.waits: set[str] = set()
        self.stage = Stage(
            name="things",
            summary="",
            module="tests.steps",
            outputs=lambda paths, name: (paths.folder / "things" / name,),
            basis=self.basis,
            names=lambda context: self.names,
        )
        executor = object.__new__(Executor)
        executor.name, executor.params = "x", Params(experiments=["x"], workers=workers)
        executor.experiment = SimpleNamespace(
            name="x",
            data=None,
            base=SimpleNamespace(phases=[1]),
            model=SimpleNamespace(spread=False),
            evaluation=SimpleNamespace(text_data="here"),
        )  # type: ignore[assignment]
        executor.context = SimpleNamespace(
            paths=Artifacts("x"), experiment=executor.experiment, read=set()
        )  # type: ignore[assignment]
        executor._pool = Pool(gpu_slots(executor.params), [])
        self.executor = executor

    def basis(self, _: object, name: str) -> tuple[Any, dict[str, Any]]:
        if name in self.waits:
            raise NotReady("what it needs: not there yet")
        return self.settings[name], {}

    def run(self, only: tuple[str, ...] = ()) -> tuple[Any, ...]:
        return self.executor.run_stage(self.stage, ["things"], only)

    def calls(self) -> list[str]:
        log = self.folder / "calls.log"
        return sorted(log.read_text().split()) if log.is_file() else []

    def text(self, name: str) -> str:
        return (self.folder / "artifacts/x/things" / name / "text").read_text()


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Things:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    forkserver._forkserver._stop()  # the next one has this test's streams and folder
    return Things(tmp_path)


def test_only_what_changed_is_run(things: Things) -> None:
    assert things.run() == ({}, {}, 5, 0)
    things.settings["b"] = 2
    things.names = ["a", "b", "c", "d"]
    assert things.run() == ({}, {}, 1, 3)
    assert things.calls() == ["a", "b", "b", "c", "d", "e"]
    things.settings["b"] = 1  # changed back: from the store
    assert things.run() == ({}, {}, 0, 4)
    assert len(things.calls()) == 6


def test_a_failure_stops_no_other(things: Things, capfd: pytest.CaptureFixture[str]) -> None:
    for name, behaviour in {"a": "refuse", "c": "die", "d": "bug"}.items():
        Path(f"{name}.does").write_text(behaviour)
    things.waits = {"e"}
    failures, waiting, done, _ = things.run()
    assert failures == {
        "things a": "failed (exit status 2); its message is above",
        "things c": "ended by signal 9 (out of memory?)",
        "things d": "failed (exit status 1); its message is above",
    }
    assert (waiting, done) == ({"things e": "what it needs: not there yet"}, 1)
    told = capfd.readouterr().err
    assert "merit: error: things a: a: the loss is nan" in told
    assert "ZeroDivisionError: a bug" in told
    for name in "acd":
        Path(f"{name}.does").unlink()
    things.waits = set()
    assert things.run() == ({}, {}, 4, 1)


def test_what_is_out_of_date_is_gone_before_anything_is_made_of_it(things: Things) -> None:
    things.run()
    things.settings["a"] = 2
    Path("a.does").write_text("refuse")
    things.run()
    assert not Path("artifacts/x/things/a").exists()


def test_only_some_and_what_was_copied_in(things: Things, tmp_path: Path) -> None:
    """Taken where it is whole and of the present key; what is not, and what is missing, is made."""
    things.settings = {name: ord(name) for name in things.names}
    things.run(("a", "b", "c", "d"))
    assert things.calls() == ["a", "b", "c", "d"]
    Path("artifacts/x/.store").rename(tmp_path / "elsewhere")  # as on another machine
    place = Path("artifacts/x/things")
    shutil.rmtree(place / "b")
    shutil.copytree(place / "a", place / "b")  # another's
    (place / "c/text").unlink()  # a link: the store keeps its own
    (place / "c/text").write_text("c")  # cut short
    things.settings["d"] = 0  # outdated
    assert things.run() == ({}, {}, 4, 1)
    assert things.calls() == ["a", "b", "b", "c", "c", "d", "d", "e"]
    assert things.text("b").startswith("b")
    assert things.text("c").startswith("c by")


def test_two_runs_of_one_stage_are_refused(things: Things) -> None:
    with (
        exclusive(Path("artifacts/x/.work/run-things"), "things is being run"),
        pytest.raises(MeritError, match=r"things is being run by process \d+ on .* already"),
    ):
        things.run()


def test_each_slot_has_gpus_of_its_own(things: Things, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    params = Params(experiments=["x"], launch=Launch(gpus_per_branch=1))
    assert gpu_slots(params) == [["2"], ["3"], ["5"]]
    assert gpu_slots(Params(experiments=["x"], launch=Launch(gpus_per_branch=2))) == [["2", "3"]]
    with pytest.raises(MeritError, match=r"2 x 2 GPUs are asked for, 3 are visible"):
        gpu_slots(Params(experiments=["x"], launch=Launch(gpus_per_branch=2, slots=2)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-1a2b,0")
    with pytest.raises(MeritError, match=r"'0,GPU-1a2b,0': '0'"):
        gpu_slots(params)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    things.executor._pool = Pool(gpu_slots(params), [])
    things.run()
    assert {things.text(name).split()[-1] for name in things.names} <= {"2", "3", "5"}


def test_all_gpus_are_used_whatever_a_stage_does(things: Things) -> None:
    """Branches as they are asked for; a base that is trained has all; what does not train one."""
    executor, slots = things.executor, [["0", "1"], ["2", "3"]]
    known = {name: executor._slots(STAGES[name], slots) for name in ("train", "base", "gradients")}
    assert known == {
        "train": slots,
        "base": [["0", "1", "2", "3"]],
        "gradients": [["0"], ["1"], ["2"], ["3"]],
    }
    assert executor._slots(STAGES["gradients"], [[], []]) == [[], []]
    assert describe_slots(slots) == "GPU 0, 1, 2, 3: 2 items side by side, 2 GPUs each"
    assert describe_slots([[], []]) == "no GPU is used: 2 items side by side on the CPU"


SCRIPT = """
import sys
from pathlib import Path
from tests.test_run import Things
from merit.run.pool import Stopped
try:
    Things(Path.cwd()).run(("a",))
except Stopped:
    sys.exit(75)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 75), (signal.SIGKILL, -9)]
)
def test_a_signal_reaches_what_runs_and_nothing_outlives_the_command(
    things: Things, number: signal.Signals, status: int
) -> None:
    Path("a.does").write_text("stop")
    process = subprocess.Popen([sys.executable, "-c", SCRIPT])
    deadline = time.monotonic() + 120
    while not (Path("started").is_file() and Path("started").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    child = int(Path("started").read_text())
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    Path("a.does").unlink()
    assert things.run(("a",)) == ({}, {}, 1, 0)


CHAIN = """
import os, subprocess, sys, time
from pathlib import Path
from merit.run.pool import end_with_parent
if len(sys.argv) > 1:
    end_with_parent()
else:
    child = subprocess.Popen([sys.executable, __file__, "child"])
    Path("new").write_text(str(child.pid))
    os.rename("new", "started")
time.sleep(600)
"""


def test_a_process_of_torchrun_ends_with_what_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun that is killed cannot end its processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("chain.py").write_text(CHAIN)
    process = subprocess.Popen([sys.executable, "chain.py"])
    deadline = time.monotonic() + 120
    while not Path("started").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child = psutil.Process(int(Path("started").read_text()))
    while child.num_threads() == 1:  # it does not watch yet
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_unknown_stages_and_items_are_refused(mini: Any) -> None:
    context = Context.of(mini)
    with pytest.raises(MeritError, match=r"no stage is called 'trian'\. Did you mean `train`"):
        check_items(context, ["trian"], [])
    with pytest.raises(MeritError, match=r"smoke train has no 'joint-1ep-s9'\. Did you mean"):
        check_items(context, ["train"], ["joint-1ep-s9"])
    with pytest.raises(MeritError, match=r"smoke data has no 'x'\. It has no items"):
        check_items(context, ["data"], ["x"])
    with pytest.raises(MeritError, match=r"`--only` needs a stage"):
        check_items(context, list(STAGES), ["x"])
