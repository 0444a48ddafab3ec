"""The settings that the repository ships: the paper's experiments, and their rehearsals."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from merit.config import EXPERIMENTS_DIR, Experiment, load_experiment
from merit.config.branches import plan
from merit.config.data import PublicData, TaskRule
from merit.config.rehearsal import rehearsed
from merit.data.sources.public import PUBLIC
from merit.errors import MeritError
from merit.eval.benchmarks import BENCHMARKS, engine_of
from merit.eval.paper import load_paper_table

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / EXPERIMENTS_DIR
PAPER = {
    "vision_flan_3b": "table02_vision_flan_3b",
    "vision_flan_3b_llava": "table02_vision_flan_3b",
    "vision_176_7b": "table03_vision_176_7b",
    "vision_176_7b_scaled": "table03_vision_176_7b",
    "text_flan_3b": "table04_text_flan_3b",
}
# what every header says
SAID = ("Hardware:", "Disk:", "GPU-hours", "Expected", "Unsaid by the paper")


def load(name: str) -> Experiment:
    return load_experiment(name, FOLDER)


def header(name: str) -> str:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines[: lines.index("")])


@pytest.mark.parametrize("name", PAPER)
def test_the_methods_are_the_papers(name: str) -> None:
    experiment = load(name)
    table = load_paper_table(PAPER[name], ROOT / "reports", experiment.report.paper_build)
    ours = {"joint-shrunk", "random-4"} if "7b" in name else {"joint-shrunk"}
    assert set(experiment.methods) - ours == set(table.averages())
    assert experiment.report.paper_table == PAPER[name]
    assert set(experiment.evaluation.benchmarks) <= set(BENCHMARKS)
    assert len(experiment.evaluation.benchmarks) == 8
    engine_of(experiment.evaluation.benchmarks)
    assert experiment.training.trainable == ["decoder"]


def test_seeds_are_the_papers() -> None:
    """Three; five of joint-1ep and merit-3d at 3B; the scaled base has a single run."""
    three = load("vision_flan_3b").methods
    assert {n: m.seeds for n, m in three.items() if m.trained and m.seeds != [1, 2, 3]} == {
        "joint-1ep": [1, 2, 3, 4, 5],
        "merit-3d": [1, 2, 3, 4, 5],
    }
    assert load("vision_176_7b").methods["merit-2d"].seeds == [1, 2, 3]
    assert load("vision_176_7b_scaled").methods["merit-2d"].seeds == [1]


@pytest.mark.parametrize("name", PAPER)
def test_the_header_says_what_it_takes(name: str) -> None:
    """And the numbers of branches and models, and their size, follow from the settings."""
    text = header(name)
    assert [word for word in SAID if word not in text] == []
    assert f"Run it: merit run {name} --rehearse merit run {name} The first" in text
    found = re.search(r"(\d+) branches and (\d+) models, ([\d.]+) TB", text)
    assert found is not None
    planned = plan(load(name))
    assert (int(found[1]), int(found[2])) == (len(planned.branches), len(planned.models))
    # terabytes: a branch's float32 decoder, a model in bfloat16
    branch, model = (30.46e-3, 16.6e-3) if "7b" in name else (12.34e-3, 7.5e-3)
    size = branch * len(planned.branches) + model * len(planned.models)
    assert float(found[3]) == pytest.approx(size, rel=0.15)


def test_the_bases_are_the_two_that_the_paper_can_mean() -> None:
    released, built = load("vision_flan_3b"), load("vision_flan_3b_llava")
    assert released.base.hub == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert built.base.assemble is not None
    assert built.base.assemble.vision.hub == released.base.hub
    assert [p.trainable for p in built.base.phases] == [["projector"], ["projector", "decoder"]]
    same = ("methods", "training", "encoding", "gradients", "evaluation", "sweeps", "studies")
    assert all(getattr(released, key) == getattr(built, key) for key in same)
    base, scaled = load("vision_176_7b"), load("vision_176_7b_scaled")
    assert [p.data for p in base.base.phases] == ["captions", "instructions"]
    assert [p.data for p in scaled.base.phases] == ["captions", "recaptions", "instructions"]
    assert base.data.sources == scaled.data.sources  # type: ignore[union-attr]


def test_the_176_units() -> None:
    data = load("vision_176_7b").data
    assert data.source == "public"
    flan, cauldron, *single = data.sources
    assert not isinstance(flan.tasks, list)
    assert flan.tasks.draw == 136
    assert isinstance(cauldron.tasks, list)
    assert set(cauldron.tasks) <= set(PUBLIC["the_cauldron"].tasks or cauldron.tasks)
    assert flan.tasks.draw + len(set(cauldron.tasks)) + len(single) == 176


@pytest.mark.parametrize("name", PAPER)
def test_phases_are_an_epoch_of_what_they_read(name: str) -> None:
    sizes = {"captions": 558_128, "recaptions": 2_857_560, "instructions": 665_298}
    for phase in load(name).base.phases:
        assert phase.num_steps == -(-sizes[phase.data] // phase.optimizer.batch_size)
        assert phase.precision == "bfloat16"
        assert phase.data in load(name).data.pretraining  # type: ignore[union-attr]


# --- rehearsals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER)
def test_a_rehearsal_is_the_experiment_cut_down(name: str) -> None:
    whole, found = load(name), load(f"{name}_rehearsal")
    assert isinstance(found.data, PublicData)
    sources = found.data.sources
    assert [source.max_examples for source in sources] == [50] * len(sources)
    drawn = [s.tasks if isinstance(s.tasks, list) else s.tasks.draw for s in sources]
    assert drawn[0] == (3 if len(drawn) == 1 else 1)
    planned = plan(found)
    assert list(planned.models) == ["base", "merit-1d-s1"]
    assert len(planned.branches) == 2
    assert found.evaluation.max_questions == 20
    assert found.gradients.num_examples == 50
    assert all(phase.num_steps == 2 for phase in found.base.phases)
    # what decides memory and credentials is as it will be
    same = ("encoding", "training", "model", "merge_dtype")
    assert all(getattr(found, key) == getattr(whole, key) for key in same)
    assert found.base.hub == whole.base.hub
    assert found.evaluation.benchmarks == whole.evaluation.benchmarks
    # the settings hold together, as if they stood in a file
    again = found.model_dump(mode="json") | {"name": "again"}
    assert Experiment.model_validate(yaml.safe_load(yaml.safe_dump(again))).methods == found.methods


def test_a_rehearsal_of_public_sources_by_hand() -> None:
    data = PublicData.model_validate(
        {
            "source": "public",
            "sources": [
                {"name": "vision_flan", "tasks": {"minimum": 50, "draw": 136}, "max_examples": 9},
                {"name": "the_cauldron", "tasks": ["ai2d", "nlvr2"]},
            ],
            "pretraining": {"captions": [{"name": "llava_pretrain"}]},
        }
    )
    found = rehearsed(load("vision_176_7b").model_copy(update={"data": data})).data
    assert isinstance(found, PublicData)
    assert [entry.tasks for entry in found.sources] == [TaskRule(minimum=50, draw=1), ["ai2d"]]
    assert [entry.max_examples for entry in found.sources] == [9, 50]
    [captions] = found.pretraining["captions"]
    assert (captions.max_examples, captions.max_records) == (50, 1000)


def test_a_generated_mixture_is_not_rehearsed() -> None:
    with pytest.raises(MeritError, match=r"mini_text\.yaml: key `data\.source`: .*`merit smoke`"):
        load("mini_text_rehearsal")


def test_a_rehearsal_may_be_a_file(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "text_flan_3b.yaml", tmp_path)
    derived = load_experiment("text_flan_3b_rehearsal", tmp_path)
    (tmp_path / "short.yaml").write_text("extends: text_flan_3b\nrehearsal: true\n", "utf-8")
    found = load_experiment("short", tmp_path)
    assert found == derived.model_copy(update={"name": "short"})
