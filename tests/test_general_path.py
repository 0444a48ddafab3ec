"""From data that are read to a merged model, stage by stage, on tiny models of the real classes.

What the mini experiments do not have: bases laid out as on the hub, in bfloat16 and in shards,
images that are not cached, of several sizes, in zip archives and parquet files, packed rows,
sketches, other types of the merged model. Nothing but settings differs from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from merit.data import stage as data
from merit.data.examples import read_examples
from merit.eval.stages import study
from merit.io.artifacts import Artifacts, read_json
from merit.io.checkpoints import Checkpoint
from merit.merge import model as merge
from merit.partition import stage as partition
from merit.train import base, encode
from merit.train import branch as train
from merit.train import task_gradients as gradients
from tests import tiny_models
from tests.public_fixtures import flan_record, llava_next, pack, picture, save_lines, vision_flan_1k

NAME = "mine"
ROOT = Path(__file__).parent.parent
ROLES = ("user", "assistant") * 2
OPTIMIZER = {"learning_rate": 0.01, "batch_size": 2, "warmup_ratio": 0.0}
METHODS: dict[str, Any] = {
    "base": {"partition": "base"},
    "joint-1ep": {"partition": "joint"},
    "merit-1d": {"partition": "merit", "axes": 1},
}


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": r, "content": t} for r, t in zip(ROLES, texts, strict=False)]


@dataclass(frozen=True)
class Run:
    """A finished run: what its stages wrote, and the methods' models."""

    paths: Artifacts

    @property
    def branches(self) -> list[Path]:
        return [self.paths.branch(f"merit-1d-s1-g{k}") for k in range(2)]

    @property
    def merged(self) -> Path:
        return self.paths.model("merit-1d-s1")

    @property
    def tasks(self) -> dict[str, tuple[int, int, int]]:
        """{task: (samples, tokens, supervised tokens)}."""
        return {
            entry["task"]: (entry["num_samples"], entry["num_tokens"], entry["num_loss_tokens"])
            for entry in read_json(self.paths.encoded / "tasks.json")
        }

    @property
    def weights(self) -> list[float]:
        """Each group's share of all tokens, worked out from its tasks."""
        groups = read_json(self.paths.partition / "partitions.json")["merit-1d"]
        counts = [0, 0]
        for task, (_, num_tokens, _) in self.tasks.items():
            counts[groups[task]] += num_tokens
        return [count / sum(counts) for count in counts]


def run(folder: Path, settings: dict[str, Any]) -> Run:
    """All stages from the data to two merged models, in a working folder of their own."""
    values: dict[str, Any] = {
        "name": NAME,
        "base": {"checkpoint": "checkpoint"},
        "gradients": {"representation": "sketch", "sketch_size": 512, "batch_size": 2},
        "methods": METHODS,
        "evaluation": {"benchmarks": ["mini_mcq"]},
        "report": {"title": "Mine", "paper_table": "table02_vision_flan_3b"},
        **settings,
    }
    (folder / "experiments").mkdir()
    (folder / "experiments" / f"{NAME}.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in (data, base, encode, gradients, partition):
            stage.run(NAME)
        for branch in ("merit-1d-s1-g0", "merit-1d-s1-g1", "joint-1ep-s1"):
            train.run(NAME, branch)
        for model in ("merit-1d-s1", "joint-1ep-s1", "base"):
            merge.run(NAME, model)
    return Run(Artifacts(NAME, folder / "artifacts"))


# --- the two bases ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A sharded bfloat16 Qwen2.5-VL on a zip archive with pictures of two sizes and a parquet file
    with a text-only record; packed bfloat16, recomputed activations, merged to bfloat16.
    """
    folder = tmp_path_factory.mktemp("vision")
    tiny_models.qwen_vl(folder / "checkpoint")
    vision_flan_1k(
        folder / "sources/vision_flan_1k",
        [
            flan_record("a", "small.png", "ok_vqa", "What is it?\n<image>", "a boat"),
            flan_record("a", "large.png", "ok_vqa", "<image>\nWhy?", "to fish"),
            flan_record("b", "large.png", "CLEVR+QA", "<image>\nHow many?", "(b) two"),
        ],
    )
    pack(
        folder / "sources/vision_flan_1k/image_191-task_1k.zip",
        {
            "images_191task_1k/small.png": picture(1, size=(4, 3)),
            "images_191task_1k/large.png": picture(2, size=(120, 60)),
        },
    )
    llava_next(folder / "sources/llava_next")
    return run(
        folder,
        {
            "data": {
                "source": "public",
                "sources": [{"name": "vision_flan_1k"}, {"name": "llava_next"}],
            },
            "training": {
                **{"trainable": ["decoder"], "optimizer": OPTIMIZER, "precision": "bfloat16"},
                **{"pack_tokens": 160, "gradient_checkpointing": True},
            },
        },
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A sharded float32 Llama on one's own files, a tenth of them held out; merged to bfloat16."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.llama(folder / "own/model")
    tasks = {
        "riddles": [["What?", "A hat."], ["Who is", "A cat."], ["Where", "At it!"]],
        "sums": [["1+1=", "2", "+1=", "3"]],
        "odes": [["Ode!", "O!"], ["Sing", "La"]],
        "four": [["4", "four"]],
    }
    for task, examples in tasks.items():
        rows = [{"messages": messages(*turns)} for turns in examples]
        save_lines(folder / f"own/mixture/{task}.jsonl", rows)
    values = {
        "data": {"source": "jsonl", "folder": "own/mixture", "held_out": 0.1},
        "base": {"checkpoint": "own/model"},
        "encoding": {"max_tokens": 2048, "on_long_example": "cut"},
        "gradients": {"representation": "sketch", "batch_size": 4},
        "training": {
            **{"trainable": ["decoder"], "optimizer": OPTIMIZER, "precision": "bfloat16"},
            **{"pack_tokens": 4096, "gradient_checkpointing": True},
        },
        "merge_dtype": "bfloat16",
        "report": {"title": "Mine", "partition": "merit-1d"},
        "evaluation": {"benchmarks": []},
        "studies": {"held_out": {}, "retention": {"max_new_tokens": 6, "batch_size": 5}},
    }
    done = run(folder, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study.run(NAME, "held_out")
        study.run(NAME, "retention")
    return done


# --- tokens and budgets ---------------------------------------------------------------------------


def test_tokens_are_those_of_the_template_the_bytes_and_the_patches(
    vision: Run, llama: Run
) -> None:
    """Around one turn the Qwen template has 59 tokens, Llama's 24; a picture has 2 marks and a
    token for 28 x 28 pixels: 2 x 3 where 4 x 3 pixels were scaled up, 2 x 4 of 120 x 60.
    """
    assert vision.tasks == {
        "CLEVR+QA": (1, 59 + (8 + 2 + 10) + 7, 7 + 1),
        "chartqa": (2, 2 * (59 + (6 + 2 + 3) + 1), 2 * (1 + 1)),
        "ok_vqa": (2, (59 + (12 + 6 + 2) + 6) + (59 + (8 + 2 + 5) + 7), 7 + 8),
        # a second turn: 7 + 13 tokens between the turns, and an end mark
        "sharegpt": (1, 59 + 5 + 4 + (7 + 9 + 13 + 5 + 1), 5 + 6),
    }
    assert llama.tasks == {
        "riddles": (2, 2 * (24 + 5 + 6), 2 * 7),  # of three; each is as long
        "odes": (1, 24 + 4 + 2, 3),  # of two
        "sums": (1, 24 + 4 + 1 + (8 + 3 + 14 + 1 + 1), 2 + 2),
        "four": (1, 24 + 1 + 4, 5),
    }


def test_groups_share_all_tasks_and_tokens(vision: Run, llama: Run) -> None:
    for done in (vision, llama):
        rows = np.load(done.paths.gradients / "gradients.npy")
        assert rows.shape == (len(done.tasks), 65_537 if done is llama else 512)
        assert (np.linalg.norm(rows, axis=1) > 0).all()
        groups = read_json(done.paths.partition / "partitions.json")["merit-1d"]
        assert set(groups) == set(done.tasks)
        assert set(groups.values()) == {0, 1}
        summaries = [read_json(folder / "summary.json") for folder in done.branches]
        joint = read_json(done.paths.branch("joint-1ep-s1") / "summary.json")
        total = sum(num_tokens for _, num_tokens, _ in done.tasks.values())
        assert sum(s["num_tokens"] for s in summaries) == joint["num_tokens"] == total
        assert [s["num_tokens"] / total for s in summaries] == pytest.approx(done.weights)


# --- the merged model -----------------------------------------------------------------------------


def check_average(done: Run, kind: Any, rename: Callable[[str], str]) -> None:
    """The merged model's trained parameters are sum_k w_k theta_k, cast once; the rest is the
    base's, as transformers reads both.
    """
    found = dict(kind.from_pretrained(done.merged).named_parameters())
    start = dict(kind.from_pretrained(done.paths.base, dtype=torch.bfloat16).named_parameters())
    branches = [Checkpoint(folder / "model.safetensors") for folder in done.branches]
    expected = dict(start)
    for name in branches[0].names:
        exact = sum(w * b.read(name).double() for w, b in zip(done.weights, branches, strict=True))
        expected[rename(name)] = exact.to(torch.bfloat16)
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, expected[name]), name
    moved = {name for name in found if not torch.equal(found[name], start[name])}
    assert moved
    assert not [name for name in moved if "visual" in name]


def test_a_merged_model_is_the_average(vision: Run, llama: Run) -> None:
    from transformers import LlamaForCausalLM, Qwen2_5_VLForConditionalGeneration

    check_average(llama, LlamaForCausalLM, lambda name: name)
    check_average(
        vision,
        Qwen2_5_VLForConditionalGeneration,
        lambda name: name.replace("model.", "model.language_model.", 1),
    )


def tables_of(done: Run, name: str) -> dict[str, Any]:
    folder = done.paths.folder.parents[1] / "reports/studies" / NAME / name
    tables: dict[str, Any] = read_json(folder / "result.json")["tables"]
    return tables


def losses_of(done: Run, folder: Path, turns: list[tuple[str, str]]) -> list[tuple[float, int]]:
    """(loss, supervised tokens) of each answer, by only transformers: one token per byte."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(done.merged)
    model = LlamaForCausalLM.from_pretrained(folder)
    found = []
    for prompt, answer in turns:
        chat = tokenizer.apply_chat_template(messages(prompt, answer))
        ids = torch.tensor([chat["input_ids"]])
        supervised = len(answer.encode()) + 1  # and the end mark
        labels = torch.where(torch.arange(ids.shape[1]) >= ids.shape[1] - supervised, ids, -100)
        with torch.no_grad():
            found.append((model(input_ids=ids, labels=labels).loss.item(), supervised))
    return found


@pytest.mark.parametrize("name", ["base", "merit-1d-s1"])
def test_every_models_loss_on_what_was_held_out(llama: Run, name: str) -> None:
    """Of tasks with more than one example."""
    tables = tables_of(llama, "held_out")
    rows = tables["held_out_tasks"]
    assert [(row["task"], row["num_examples"]) for row in rows] == [("odes", 1), ("riddles", 1)]
    turns = []
    for row in rows:
        (example,) = read_examples(llama.paths.data / "held_out" / f"{row['task']}.jsonl")
        turns.append((example.messages[0]["content"], example.messages[1]["content"]))
    losses = [loss for loss, _ in losses_of(llama, llama.paths.model(name), turns)]
    assert [row[name] for row in rows] == pytest.approx(losses, rel=1e-3)
    found = {(row["method"], row["c"]): row["loss"] for row in tables["held_out"]}
    assert found[name.removesuffix("-s1"), 1.0] == pytest.approx(sum(losses) / 2, rel=1e-3)
    assert len({found[method, 1.0] for method in METHODS}) == 3


@pytest.mark.parametrize("name", ["base", "merit-1d-s1"])
def test_what_every_model_keeps_of_the_base_s_own_answers(llama: Run, name: str) -> None:
    tables = tables_of(llama, "retention")
    shown, rows = tables["answers"], {row["model"]: row for row in tables["retention"]}
    assert len({row["prompt"] for row in shown}) == len(shown) == 24
    turns = [(row["prompt"], row["base"]) for row in shown if row["base"]]
    folder = llama.paths.base if name == "base" else llama.paths.model(name)
    losses = losses_of(llama, folder, turns)
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert rows[name]["loss"] == pytest.approx(mean, rel=1e-3)
    words = sum(len(row[name].split()) for row in shown) / 24
    assert rows[name]["words"] == pytest.approx(words)
    assert rows["base"]["same_answers"] == 24
