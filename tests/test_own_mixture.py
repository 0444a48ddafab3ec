"""docs/own-mixture.md: its commands in their order, with a tiny model in place of the mini one."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from merit.config import load_experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json, write_json
from merit.mini.own_mixture import write_own
from merit.run import execute
from merit.run.cli import main
from merit.run.pool import Task
from tests import tiny_models
from tests.public_fixtures import save

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own-mixture.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
TASKS = [f"task_{letter}" for letter in "abcdefgh"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """What the stages data and base of mini_text leave, at a tiny size."""
    monkeypatch.chdir(tmp_path)
    paths = Artifacts("mini_text")
    for i, task in enumerate(TASKS):
        turns = [("user", f"{i} and {i}?"), ("assistant", f"{2 * i}")]
        messages = [{"role": role, "content": words} for role, words in turns]
        example = {"id": "x", "task": task, "messages": messages, "images": []}
        save(paths.mixture / f"{task}.jsonl", (json.dumps(example) + "\n") * 4)
    write_json(paths.mixture / "tasks.json", [{"task": task} for task in TASKS])
    tiny_models.llama(paths.base)
    write_json(paths.base / "base.json", {"base_hash": "0"})
    return paths


def test_a_mixture_and_a_model_as_if_they_were_ones_own(world: Artifacts) -> None:
    write_own(world, Path("own"), num_tasks=4, num_examples=3)
    found = sorted(path.name for path in Path("own/mixture").iterdir())
    assert found == ["task_a.jsonl", "task_c.jsonl", "task_e.jsonl", "task_g.jsonl"]
    lines = [json.loads(line) for line in Path("own/mixture/task_c.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [["messages"]] * 3
    assert lines[0]["messages"][1] == {"role": "assistant", "content": "4"}
    assert not Path("own/model/base.json").exists()
    assert Path("own/model/tokenizer.json").read_bytes()


def test_a_world_that_was_not_made_is_named(world: Artifacts) -> None:
    shutil.rmtree(world.base)
    with pytest.raises(
        MeritError, match=r"config\.json: not made yet; run `merit run mini_text base`"
    ):
        write_own(world, Path("own"))
    assert not Path("own").exists()


class Here:
    """A pool that runs its tasks one by one in this process."""

    def __init__(self, *_: object) -> None:
        self.slots = [""]

    def run(self, label: str, tasks: Sequence[Task]) -> dict[str, str]:
        for _, function, arguments in tasks:
            function(*arguments)
        return {}


def test_the_pages_commands_in_their_order(
    world: Artifacts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the first block, which takes minutes; in this process, where torch is imported."""
    monkeypatch.setattr(execute, "Pool", Here)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("experiments").mkdir()
    for path in (ROOT / "experiments").glob("*.yaml"):
        shutil.copy(path, "experiments")
    write_own(world, Path("own"))
    making, settings, *rest = BLOCKS
    assert "python -m merit.mini.own_mixture own" in making
    subprocess.run(["bash", "-ec", settings], check=True)
    experiment = load_experiment("own")
    assert experiment.training.optimizer.learning_rate == 2e-4
    for line in "".join(rest).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "merit"
        main(arguments)
    num_models, num_branches = len(plan(experiment).models), len(plan(experiment).branches)
    told = capsys.readouterr().out
    assert f"train own: {num_branches} done, 0 kept" in told
    assert "studies own: 1 done, 0 kept" in told
    assert num_models == 5
    paths = Artifacts("own")
    assert {path.name for path in (paths.folder / "models").iterdir()} == set(
        plan(experiment).models
    )
    groups = read_json(paths.partition / "partitions.json")["merit-2d"]
    assert set(groups) == set(TASKS)
    assert set(groups.values()) == {0, 1, 2, 3}
    assert (paths.model("merit-2d-s1") / "README.md").is_file()
    result = read_json(Path("reports/studies/own/held_out/result.json"))
    assert set(result["summary"]["loss"]) == set(plan(experiment).models)
    assert result["summary"]["num_tasks"] == len(TASKS)
    # the page's files are where it says
    for named in re.findall(r"`(artifacts/own/[\w./-]+)`", PAGE):
        assert Path(named).exists()


def test_the_pages_python_loads_the_merged_model() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    compile(code, "own-mixture.md", "exec")
    assert code.count("artifacts/own/models/merit-2d-s1") == 2
