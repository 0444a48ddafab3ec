"""From data that are read to a merged model, stage by stage, on tiny models of the real classes.

What the mini experiments do not have: bases laid out as on the hub, in bfloat16 and in shards,
images that are not cached, of several sizes, in zip archives and parquet files, packed rows,
sketches, other types of the merged model. Nothing but settings differs from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.testing import assert_close

from merit.data import stage as data
from merit.data.examples import read_examples
from merit.eval.stages import study
from merit.eval.studies.held_out import draw as held_out_figure
from merit.eval.studies.retention import draw as retention_figure
from merit.eval.studies.retention import measure as retention
from merit.io.artifacts import Artifacts, read_json
from merit.io.checkpoints import Checkpoint
from merit.merge import model as merge
from merit.partition import stage as partition
from merit.train import base, encode
from merit.train import branch as train
from merit.train import task_gradients as gradients
from merit.train.dataset import TokenizedDataset
from tests import tiny_models
from tests.public_fixtures import flan_record, llava_next, pack, picture, save, vision_flan_1k

NAME = "mine"
ROOT = Path(__file__).parent.parent
ROLES = ("user", "assistant") * 2
OPTIMIZER = {"learning_rate": 0.01, "batch_size": 2, "warmup_ratio": 0.0}
METHODS: dict[str, Any] = {
    "base": {"partition": "base"},
    "joint-1ep": {"partition": "joint"},
    "merit-1d": {"partition": "merit", "axes": 1},
}


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
        """{task: (samples, tokens, loss-loss_mask tokens)}."""
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
                "trainable": ["decoder"],
                "optimizer": OPTIMIZER,
                "precision": "bfloat16",
                "pack_tokens": 160,
                "gradient_checkpointing": True,
            },
        },
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A sharded float32 Llama on one's own files, by the template's settings, with a tenth of them
    held out; merged to bfloat16.
    """
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.llama(folder / "own/model")
    tasks = {
        "riddles": [["What?", "A hat."], ["Who is", "A cat."], ["Where", "At it!"]],
        "sums": [["1+1=", "2", "+1=", "3"]],
        "odes": [["Ode!", "O!"], ["Sing", "La"]],
        "four": [["4", "four"]],
    }
    for task, examples in tasks.items():
        lines = [
            json.dumps(
                {
                    "messages": [
                        {"role": r, "content": t} for r, t in zip(ROLES, turns, strict=False)
                    ]
                }
            )
            for turns in examples
        ]
        save(folder / f"own/mixture/{task}.jsonl", "\n".join(lines) + "\n")
    values = yaml.safe_load((ROOT / "experiments/template_text.yaml").read_text())
    values["training"]["optimizer"] |= OPTIMIZER
    values["report"] |= {"curves": [], "partition": "merit-1d"}
    values["studies"] |= {"retention": {"max_new_tokens": 6, "batch_size": 5}}
    done = run(folder, values | {"name": NAME, "methods": METHODS, "merge_dtype": "bfloat16"})
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


def test_images_are_read_where_they_lie(vision: Run) -> None:
    found = TokenizedDataset.load(vision.paths.encoded)
    assert found.features.size == 0
    assert sorted(map(tuple, found.grids.tolist())) == [(1, 4, 6)] * 3 + [(1, 4, 8)]
    assert {Path(found.path_of(i)).parts[-2] for i in range(4)} >= {"images_191task_1k"}
    assert not [path for path in vision.paths.data.rglob("*") if path.suffix in (".png", ".zip")]


# --- the merged model -----------------------------------------------------------------------------


def same(name: str) -> str:
    return name


def below_the_vision_model(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1)


def averaged(done: Run, kind: Any, dtype: torch.dtype, rename: Callable[[str], str] = same) -> Any:
    """The model whose trained parameters are sum_k w_k theta_k, cast once."""
    model = kind.from_pretrained(done.paths.base, dtype=dtype)
    parameters = dict(model.named_parameters())
    branches = [Checkpoint(folder / "model.safetensors") for folder in done.branches]
    for name in branches[0].names:
        exact = sum(w * b.read(name).double() for w, b in zip(done.weights, branches, strict=True))
        parameters[rename(name)].data = exact.to(dtype)
    return model.eval()


def check_equal(found: Any, expected: Any) -> None:
    theirs = dict(expected.named_parameters())
    assert {n: p.dtype for n, p in found.named_parameters()} == {
        n: p.dtype for n, p in theirs.items()
    }
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def answer(model: Any, inputs: Any) -> list[int]:
    with torch.no_grad():
        logits = model(**inputs).logits
    assert bool(logits.isfinite().all())
    written = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    return written[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_merged_qwen_vl_is_the_average_and_answers(vision: Run) -> None:
    from PIL import Image
    from transformers import AutoProcessor
    from transformers import Qwen2_5_VLForConditionalGeneration as Model

    found = Model.from_pretrained(vision.merged)
    assert found.dtype == torch.bfloat16
    expected = averaged(vision, Model, torch.bfloat16, below_the_vision_model)
    check_equal(found, expected)
    start = dict(Model.from_pretrained(vision.paths.base).named_parameters())
    moved = {n for n, p in found.named_parameters() if not torch.equal(p, start[n])}
    assert moved
    assert not [name for name in moved if "visual" in name]

    processor = AutoProcessor.from_pretrained(vision.merged)
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    inputs = processor(text=[prompt], images=[Image.new("RGB", (120, 60))], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 8]]
    assert answer(found, inputs) == answer(expected, inputs)


def test_a_merged_llama_is_the_average_and_answers(llama: Run) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    found = LlamaForCausalLM.from_pretrained(llama.merged)
    assert found.dtype == torch.bfloat16
    expected = averaged(llama, LlamaForCausalLM, torch.bfloat16)
    check_equal(found, expected)
    assert not torch.equal(found.lm_head.weight, found.model.embed_tokens.weight)
    tokenizer = AutoTokenizer.from_pretrained(llama.merged)
    messages = [{"role": "user", "content": "What?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert inputs["input_ids"].shape == (1, 9 + 5 + 14)
    assert answer(found, inputs) == answer(expected, inputs)


def test_every_models_loss_on_what_was_held_out(llama: Run) -> None:
    """Of tasks with more than one example; by the models as transformers alone loads them."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = llama.paths.root.parent / "reports/studies" / NAME / "held_out"
    tables = read_json(folder / "result.json")["tables"]
    assert (folder / "held_out.csv").is_file()
    assert [row["task"] for row in tables["held_out_tasks"]] == ["odes", "riddles"]
    assert [row["num_examples"] for row in tables["held_out_tasks"]] == [1, 1]
    tokenizer = AutoTokenizer.from_pretrained(llama.merged)
    losses = {}
    for name in ("base", "merit-1d-s1"):
        model = LlamaForCausalLM.from_pretrained(llama.paths.model(name))
        for row in tables["held_out_tasks"]:
            (example,) = read_examples(llama.paths.data / "held_out" / f"{row['task']}.jsonl")
            ids = torch.tensor([tokenizer.apply_chat_template(list(example.messages))["input_ids"]])
            supervised = len(example.messages[1]["content"]) + 1
            labels = torch.where(torch.arange(ids.shape[1]) >= ids.shape[1] - supervised, ids, -100)
            with torch.no_grad():
                losses[name, row["task"]] = model(input_ids=ids, labels=labels).loss.item()
            assert row[name] == pytest.approx(losses[name, row["task"]], rel=1e-3)
    found = {row["model"]: row["loss"] for row in tables["held_out"]}
    for name in ("base", "merit-1d-s1"):
        mean = sum(losses[name, task] for task in ("odes", "riddles")) / 2
        assert found[name] == pytest.approx(mean, rel=1e-3)
    assert len(tables["held_out"]) == len(set(found.values())) == 3
    held_out_figure.draw({"tables": tables}, folder)
    assert (folder / "figures/held_out.png").is_file()


def test_the_card_names_base_groups_weights_and_hashes(vision: Run) -> None:
    card = (vision.merged / "README.md").read_text(encoding="utf-8")
    base_hash = read_json(vision.paths.base / "base.json")["base_hash"]
    record = read_json(vision.merged / "merge.json")
    for expected in ("`checkpoint`", base_hash, record["checkpoint_hash"]):
        assert expected in card
    groups = read_json(vision.paths.partition / "partitions.json")["merit-1d"]
    for k, weight in enumerate(vision.weights):
        listed = ", ".join(f"`{task}`" for task in vision.tasks if groups[task] == k)
        assert f"- merit-1d-s1-g{k}: {listed}\n" in card
        assert f"| merit-1d-s1-g{k} | {weight:.6f} |" in card


def test_the_base_comes_through_unchanged(vision: Run, llama: Run) -> None:
    """`base` as a model: in its own type the same tensors, with its own files beside them."""
    for done in (vision, llama):
        ours, theirs = Checkpoint(done.paths.model("base")), Checkpoint(done.paths.base)
        assert set(ours.names) == set(theirs.names)
        for name, tensor in theirs.items():
            assert_close(ours.read(name).float(), tensor.float(), rtol=2**-8, atol=0)
    folder = vision.paths.model("base")
    kept = {path.name for path in folder.iterdir()}
    assert {"preprocessor_config.json", "chat_template.json", "generation_config.json"} <= kept


def test_what_every_model_keeps_of_the_base_s_own_answers(llama: Run) -> None:
    """Against transformers alone: a greedy answer of the base, and each model's loss on all."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = llama.paths.root.parent / "reports/studies" / NAME / "retention"
    tables = read_json(folder / "result.json")["tables"]
    shown, rows = tables["answers"], {row["model"]: row for row in tables["retention"]}
    prompts = retention.PROMPTS.read_text(encoding="utf-8").splitlines()
    assert [row["prompt"] for row in shown] == prompts
    assert len(prompts) == len(set(prompts)) == 24
    tokenizer = AutoTokenizer.from_pretrained(llama.merged)
    base = LlamaForCausalLM.from_pretrained(llama.paths.base)
    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompts[0]}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = base.generate(**question, max_new_tokens=6, do_sample=False)
    new = written[0, question["input_ids"].shape[1] :]
    assert shown[0]["base"] == tokenizer.decode(new, skip_special_tokens=True).strip()
    answered = [row for row in shown if row["base"]]
    for name in ("base", "merit-1d-s1"):
        place = llama.paths.base if name == "base" else llama.paths.model(name)
        model = LlamaForCausalLM.from_pretrained(place)
        total, count = 0.0, 0
        for row in answered:
            messages = [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["base"]},
            ]
            ids = torch.tensor([tokenizer.apply_chat_template(messages)["input_ids"]])
            supervised = len(row["base"].encode()) + 1  # a token per byte, and the end mark
            labels = torch.where(torch.arange(ids.shape[1]) >= ids.shape[1] - supervised, ids, -100)
            with torch.no_grad():
                total += supervised * model(input_ids=ids, labels=labels).loss.item()
            count += supervised
        assert rows[name]["loss"] == pytest.approx(total / count, rel=1e-3)
        words = sum(len(row[name].split()) for row in shown) / 24
        assert rows[name]["words"] == pytest.approx(words)
    assert rows["base"]["same_answers"] == 24
    retention_figure.draw({"tables": tables}, folder)
    assert (folder / "figures/retention.png").is_file()
