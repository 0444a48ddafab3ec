"""What an experiment takes and lacks: counts exact, memory and time by hand, gaps by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import torch
import yaml

from benchmarks.memory import MODELS, beside_measured
from benchmarks.memory import rows as memory_rows
from merit.check.account import gather
from merit.check.amounts import Amount, generated
from merit.check.estimate import Work, flop
from merit.check.facts import Machine, facts, machine
from merit.check.judging import judge_cost
from merit.check.memory import (
    OVERHEAD,
    activations,
    adapter_entries,
    gradients_memory,
    training_memory,
)
from merit.check.missing import Surroundings, missing
from merit.check.shapes import (
    CONFIGS,
    Shapes,
    assembled,
    base_shapes,
    shapes_from_config,
)
from merit.check.stages import branch_hours, rows
from merit.config import Lora, load_experiment
from merit.config.data import SourceName
from merit.errors import MeritError
from merit.eval.benchmarks import BENCHMARKS
from merit.io.artifacts import Artifacts, write_json
from merit.run.cli import main
from merit.train.gguf import checkpoint_place

ROOT = Path(__file__).parents[1]

# 2 layers of 50 entries, 20 x 10 embeddings tied to the output, a norm of 10; a vision part of 70
SMALL = Shapes(
    tensors={"model.embed_tokens.weight": (20, 10), "model.norm.weight": (10,)},
    components={"decoder": 310, "vision": 60, "projector": 10},
    linears={"model.layers.0.mlp.up_proj": 24, "model.layers.1.mlp.up_proj": 24, "lm_head": 30},
    layer=50,
    num_layers=2,
    hidden=10,
    intermediate=14,
    kv=5,
    vocabulary=20,
    tied=True,
    stored_bytes=2,
    vision_hidden=4,
    vision_intermediate=6,
    patches=4,
)


@pytest.fixture(scope="module")
def public() -> dict[str, Shapes]:
    return {name: shapes_from_config(CONFIGS / f"{name}.json") for name in MODELS}


# --- counts ---------------------------------------------------------------------------------------


def test_counts_of_the_papers_models_are_exact(public: dict[str, Shapes]) -> None:
    vl3, vl7 = public["Qwen2.5-VL-3B-Instruct"], public["Qwen2.5-VL-7B-Instruct"]
    assert vl3.components == {
        "decoder": 3_085_938_688,
        "vision": 631_975_680,
        "projector": 36_708_608,
    }
    assert vl7.components == {
        "decoder": 7_615_616_512,
        "vision": 631_975_680,
        "projector": 44_574_464,
    }
    assert (vl3.total, vl7.total) == (3_754_622_976, 8_292_166_656)
    assert (vl3.embedding, vl7.embedding) == (311_164_928, 544_997_376)
    # embedding, last norm and, where it is not tied, the output layer
    assert vl3.outside_layers == 311_164_928 + 2048
    assert vl7.outside_layers == 2 * 544_997_376 + 3584
    assert public["Qwen2.5-3B"].components == {"decoder": 3_085_938_688}
    assert public["Qwen2.5-7B-Instruct"].components == {"decoder": 7_615_616_512}


def test_names_are_those_of_the_checkpoints_file(public: dict[str, Shapes]) -> None:
    three, seven = (public[f"Qwen2.5-VL-{size}B-Instruct"].tensors for size in (3, 7))
    assert three["visual.merger.mlp.2.weight"] == (2048, 5120)
    assert three["model.layers.35.self_attn.k_proj.bias"] == (256,)
    assert three["model.embed_tokens.weight"] == (151_936, 2048)
    assert "lm_head.weight" not in three
    assert seven["lm_head.weight"] == (152_064, 3584)
    assert not any(name.startswith("model.visual") for name in (*three, *seven))


def test_adapters_by_hand(public: dict[str, Shapes]) -> None:
    shapes = public["Qwen2.5-VL-3B-Instruct"]
    matched = [name for name in shapes.linears if re.fullmatch(Lora().targets, name)]
    assert len(matched) == 7 * 36
    # inputs + outputs of q, k, v, o, gate, up and down
    layer = 2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11_008)
    assert adapter_entries(shapes, Lora(rank=64)) == 64 * 36 * layer == 119_734_272


def test_a_mini_base_is_counted_without_building_it(tmp_path: Path) -> None:
    base = load_experiment("mini_text").base
    assert base_shapes(base, tmp_path).components == {"decoder": 761_344}  # as README says


def test_a_base_that_is_put_together_counts_both_parts(public: dict[str, Shapes]) -> None:
    whole, words = public["Qwen2.5-VL-7B-Instruct"], public["Qwen2.5-7B-Instruct"]
    found = assembled(whole, words)
    assert (found.components, found.tensors) == (whole.components, whole.tensors)
    assert adapter_entries(found, Lora()) == adapter_entries(whole, Lora())


def test_an_unknown_base_is_refused_by_name(tmp_path: Path) -> None:
    base = load_experiment("mini_text").base
    other = base.model_copy(update={"architecture": None, "hub": "a/none", "revision": "0"})
    with pytest.raises(MeritError, match=r"none.json: no config.json of the base"):
        base_shapes(other, tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(MeritError, match="found 'GPT2LMHeadModel', expected Qwen2_5_VL"):
        base_shapes(other, tmp_path)


# --- memory ---------------------------------------------------------------------------------------


def test_memory_of_full_fine_tuning_by_hand() -> None:
    parts = training_memory(SMALL, 2, 8, checkpointing=True, dense_mask=True)
    assert parts == {
        "float32 weights": 4 * 310 / 2,
        "gradients": 4 * 310 / 2,
        "optimiser": 8 * 310 / 2,
        "vision part": 2 * 70,
        "gathered": 2 * (210 + 2 * 50),
        "gradients in flight": 2 * (210 + 50) + 4 * 210,
        # 2 layers' inputs; a layer of 100 + 56 + 10 entries a token, twice
        "activations": 8 * 2 * 10 * 2 + 2 * 8 * 2 * 166,
        "attention mask": 3 * 64,
        "vision part's pass": 2 * 4 * 8 * (24 + 18),
        "logits": 8 * 20 * 10,
        "overhead": OVERHEAD,
    }
    alone = training_memory(SMALL, 1, 8, bfloat16=False, checkpointing=False, states=0)
    assert (alone["float32 weights"], alone["optimiser"]) == (1240, 0)
    assert alone["activations"] == 2 * 8 * 4 * 166
    assert "gathered" not in alone


def test_memory_of_adapters_and_of_gradients_by_hand() -> None:
    lora = training_memory(SMALL, 8, 8, entries=2 * 48)
    assert lora["weights"] == 2 * 380  # whole on every GPU
    assert lora["trained, gradients, states"] == 16 * 2 * 48
    parts = gradients_memory(SMALL, 8, kept=62, width=2)
    assert (parts["weights"], parts["gradients"], parts["entries kept"]) == (760, 800, 248)
    assert parts["activations"] == 2 * 8 * 2 * 166


@pytest.mark.parametrize(("hidden", "intermediate", "kv_heads"), [(128, 512, 2), (256, 512, 4)])
def test_activations_are_what_autograd_keeps(hidden: int, intermediate: int, kv_heads: int) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def kept(layers: int) -> int:
        config = Qwen2Config(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
        )
        model = Qwen2ForCausalLM(config).bfloat16().train()
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if (place := tensor.untyped_storage().data_ptr()) not in own:
                seen[place] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden_states = model.model(torch.zeros(1, 48, dtype=torch.long), use_cache=False)[0]
        assert hidden_states.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())

    shapes = replace(
        SMALL, num_layers=2, hidden=hidden, intermediate=intermediate, kv=hidden // 4 * kv_heads
    )
    measured = kept(4) - kept(2)
    assert activations(shapes, 48, 2, checkpointing=False) == pytest.approx(measured, rel=0.005)


def test_the_committed_table_is_what_the_command_writes(public: dict[str, Shapes]) -> None:
    import pandas as pd

    table = pd.DataFrame(
        [row for name, shapes in public.items() for row in memory_rows(name, shapes)]
    )
    committed = pd.read_csv(ROOT / "reports" / "benchmarks" / "memory.csv")
    totals = table.set_index(["model", "work", "GPUs"])["total GB each"].to_dict()
    assert committed["total GB each"].tolist() == [round(value, 2) for value in totals.values()]
    states = 16 * 3_085_938_688 / 1e9
    full = totals["Qwen2.5-VL-3B-Instruct", "full fine-tuning", 1]
    assert states < full < 80  # fits one card of 80 GB
    assert totals["Qwen2.5-VL-7B-Instruct", "full fine-tuning", 4] < 80
    assert totals["Qwen2.5-VL-7B-Instruct", "full fine-tuning", 1] > 141


def test_a_measured_peak_stands_beside_the_predicted_one() -> None:
    runs = [{"gradient_checkpointing": True, "peak_memory_gb": 60.0}]
    result = {"shape": "Qwen2.5-VL-3B-Instruct", "mfu_tokens": 8192, "mfu": runs}
    row = beside_measured(result).iloc[0]
    assert row["predicted GB"] == pytest.approx(62.79 - OVERHEAD / 1e9, abs=0.01)
    assert row["ratio"] == pytest.approx(row["predicted GB"] / 60)


# --- time and amounts -----------------------------------------------------------------------------


def test_time_by_hand() -> None:
    amount = Amount(1, 10, 1000, 400, 100)
    # layers and output 6 a weight and token, the vision part forward: 4 patches a token, projector
    assert flop(SMALL, amount, 6) == 6 * 100 * 1000 + 6 * 200 * 100 + 2 * 400 * (4 * 60 + 10)
    assert flop(SMALL, amount, 6, cached=True) == 6 * 100 * 1000 + 6 * 200 * 100
    h100 = machine("h100x8", 2, True)
    assert (h100.count, h100.card.name, h100.mfu) == (8, "H100-SXM5-80GB", 0.4)
    assert h100.hours(989e12 * 0.4 * 3600, "bfloat16") == pytest.approx(1)
    v100 = machine("v100", 2, True)  # has no bfloat16
    assert v100.hours(15.7e12 * 0.4 * 3600, "bfloat16") == pytest.approx(1)
    core = Machine(facts().cards["cpu"], 2, 1.0, "")
    assert core.hours(0.08e12 * 1800, "float32", steps=72_000) == pytest.approx(0.5 + 0.5)


def test_a_measured_share_of_the_peak_goes_before_the_assumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "reports" / "benchmarks" / "training-gpu.json"
    path.parent.mkdir(parents=True)
    runs = [{"gradient_checkpointing": c, "mfu_with_vision": 0.3 + c / 10} for c in (False, True)]
    path.write_text(json.dumps({"device": "NVIDIA H200", "mfu": runs}))
    assert machine("h200", 2, True).mfu == pytest.approx(0.4)
    assert machine("h200", 2, False).mfu == pytest.approx(0.3)
    assert "0.30 as measured on NVIDIA H200" in machine("h100", 2, False).mfu_from


def test_a_card_that_nobody_knows_is_refused() -> None:
    with pytest.raises(MeritError, match=r"--gpu: found 'h10x8'.*Did you mean `h100`\?"):
        machine("h10x8", 2, True)


def test_every_source_and_public_benchmark_has_facts() -> None:
    assert set(get_args(SourceName)) <= set(facts().sources)
    public = {name: record for name, record in BENCHMARKS.items() if record.public}
    assert set(public) <= set(facts().benchmarks)
    judged = {name for name, record in public.items() if record.judge != "none"}
    assert judged == {name for name, known in facts().benchmarks.items() if known.judge_calls}


def test_what_a_judge_costs_by_hand() -> None:
    assert judge_cost(1_000, [0.15, 0.6]) == pytest.approx(1e3 * (800 * 0.15 + 100 * 0.6) / 1e6)


# --- an experiment --------------------------------------------------------------------------------

BIG: dict[str, Any] = {
    "name": "big",
    "data": {
        "source": "public",
        "sources": [
            {"name": "vision_flan_1k", "tasks": {"draw": 136}, "max_examples": 500},
            {"name": "vlguard"},
            {"name": "lvis_instruct4v"},
            {"name": "lrv_instruction"},
        ],
    },
    "base": {"hub": "Qwen/Qwen2.5-VL-3B-Instruct", "revision": "66285546"},
    "gradients": {"representation": "stride", "batch_size": 4},
    "training": {
        "trainable": ["decoder"],
        "precision": "bfloat16",
        "pack_tokens": 8192,
        "gradient_checkpointing": True,
        "optimizer": {"learning_rate": 1e-5, "batch_size": 128},
    },
    "methods": {"joint-1ep": {"partition": "joint"}, "merit-3d": {"partition": "merit", "axes": 3}},
    "evaluation": {
        "benchmarks": ["mathvista"],
        "judge": {"url": "http://127.0.0.1/v1", "model": "some-model", "key_variable": "NO_KEY"},
    },
    "report": {"title": "Big", "paper_table": "table02_vision_flan_3b"},
}


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the experiment `big`; no token of the hub, which is off."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "big.yaml").write_text(yaml.safe_dump(BIG))
    (tmp_path / "params.yaml").write_text("experiments: [big]\n")
    paper = tmp_path / "reports" / "paper"
    paper.mkdir(parents=True)
    (paper / "table15_wall_clock.csv").write_bytes(
        (ROOT / "reports" / "paper" / "table15_wall_clock.csv").read_bytes()
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMUData", str(tmp_path / "kit"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    return tmp_path


def test_what_is_missing_is_named(big: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["preflight", "big", "--gpu", "v100x8", "--judge-price", "1", "10"])
    assert ended.value.code == 1
    page = capsys.readouterr().out
    # 1,000 questions, 2 models: 1.6M tokens read, 0.2M written
    assert "at most 2,000 calls" in page
    assert "3.60 dollars at --judge-price" in page
    lacking = page.partition("Missing (")[2]
    for line in (
        "HF_HUB_OFFLINE=0 turns it on): vision_flan_1k, vlguard, lvis_instruct4v, Qwen/Qwen2.5-VL",
        "HF_TOKEN), and its conditions accepted: vlguard (gated)",
        "source lrv_instruction in sources/lrv_instruction: it is on Google Drive only",
        "image folder sources/images of lvis_instruct4v (coco, 19 GB)",
        f"VLMEvalKit's MathVista_MINI.tsv in {big / 'kit'}",
        "the judge's key: environment variable NO_KEY",
        "bfloat16, which V100-SXM2-32GB does not compute in",
        "GPU memory for train: 63 GB a GPU, V100-SXM2-32GB has 32; `launch.gpus_per_branch: 4`",
    ):
        assert line in lacking


def lacks(work: Work, **here: Any) -> str:
    """What is missing where a machine has all but this."""
    rest = {"free_gb": 1e9, "host_gb": 1e9, "has_token": True, "offline": False}
    there = {"variables": {"NO_KEY": "x"}, "kit": Path("kit")}
    return "\n".join(missing(work, [], Surroundings(**{**rest, **there, **here}), True))


def change(folder: Path, **blocks: Any) -> Work:
    """`big` with other blocks."""
    changed = BIG | {"name": "other"} | blocks
    (folder / "experiments" / "other.yaml").write_text(yaml.safe_dump(changed))
    return gather("other", "h100x8")[0]


def test_links_that_nobody_has_fetched(big: Path) -> None:
    data = {"source": "public", "sources": [{"name": "laion_gpt4v"}]}
    work = change(big, data=data)
    assert (
        "sources/laion_gpt4v/fetched.jsonl of laion_gpt4v: this source holds links, no images. "
        'Fetch them and list {"link", "file", "sha256"} a line, or leave the source out'
    ) in lacks(work)
    (big / "sources" / "laion_gpt4v").mkdir(parents=True)
    (big / "sources" / "laion_gpt4v" / "fetched.jsonl").touch()
    assert "fetched.jsonl" not in lacks(work)


def test_code_is_isolated_or_not_run(big: Path) -> None:
    evaluation = {"benchmarks": ["humaneval"], "run_model_code": True}
    work = change(big, evaluation=evaluation)
    assert "isolation for humaneval: no namespaces" in lacks(work, isolation="no namespaces")
    assert "humaneval:" not in lacks(work)


def test_a_judge_has_a_key_or_a_record(big: Path) -> None:
    empty = {"NO_KEY": ""}
    assert "the judge's key: environment variable NO_KEY" in lacks(change(big), variables=empty)
    judge = BIG["evaluation"]["judge"] | {"replay_only": True}
    work = change(big, evaluation=BIG["evaluation"] | {"judge": judge})
    found = lacks(work, variables={}, judgements=big / "judgements.jsonl")
    assert "the judge's recorded answers" in found
    assert "the judge's key" not in found
    (big / "judgements.jsonl").touch()
    assert "judge" not in lacks(work, judgements=big / "judgements.jsonl")


def test_a_gguf_file_is_measured_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").touch()
    path = tmp_path / "a_package" / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(40)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(100)
    writer.add_tensor("token_embd.weight", np.zeros((100, 16), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 40 + 2 * 16
    monkeypatch.syspath_prepend(tmp_path)
    for checkpoint in (str(path), "package:a_package/x.gguf"):
        base = load_experiment("mini_text").base.model_copy(
            update={"architecture": None, "checkpoint": checkpoint}
        )
        shapes = base_shapes(base, tmp_path / "none")
        assert (shapes.layer, shapes.num_layers, shapes.stored_bytes) == (layer, 3, 4)
        assert shapes.components == {"decoder": 3 * layer + 16 + 100 * 16}
    with pytest.raises(MeritError, match=r"base\.checkpoint`: package 'none' is not installed"):
        checkpoint_place("package:none/x.gguf", "base.checkpoint")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(MeritError, match=r"broken\.gguf: its sizes are unknown until the base"):
        shapes_from_config(broken)


def test_a_generated_mixture_is_counted_when_it_is_written(big: Path) -> None:
    experiment = load_experiment("mini_text", ROOT / "experiments")
    paths = Artifacts("x", big)
    assert (generated(experiment, paths).num_tasks, generated(experiment, paths).gigabytes) == (
        66,
        0,
    )
    write_json(paths.mixture / "tasks.json", [{"num_examples": 30}, {"num_examples": 12}])
    found = generated(experiment, paths)
    assert (found.num_tasks, found.num_examples, found.unsized) == (2, 42, ())


def test_the_stages_of_an_experiment_by_hand(big: Path) -> None:
    work, unknown = gather("big", "h100x8")
    assert unknown == []
    found = {row.stage: row for row in rows(work)}
    # 136 tasks of 500, VLGuard, LVIS, LRV; a picture of 640 x 480 is 391.8 tokens
    examples = 136 * 500 + 2_000 + 222_711 + 300_000
    assert work.mixture.num_examples == examples
    image = 640 * 480 / 784
    tokens = 68_000 * (120 + image) + 2_000 * (150 + image) + 222_711 * (500 + image)
    tokens += 300_000 * (100 + image)
    assert work.mixture.num_tokens == pytest.approx(tokens)
    assert found["data"].download_gb == pytest.approx(36.4 + 0.36)
    assert found["data"].unsized == ("vlguard",)
    assert found["base"].download_gb == pytest.approx(7.509245952)
    kept = -(-3_085_938_688 // 5)
    assert found["gradients"].disk_gb == pytest.approx(4 * kept * 139 / 1e9)
    # a joint branch and eight of an eighth each, all in float32
    assert found["train"].runs == 9
    assert found["train"].disk_gb == pytest.approx(9 * 4 * 3_085_938_688 / 1e9)
    joint = branch_hours(work, work.plan.branches["joint-1ep-s1"])
    assert branch_hours(work, work.plan.branches["merit-3d-s1-g0"]) == pytest.approx(joint / 8)
    assert found["train"].hours == pytest.approx(2 * joint)
    assert found["merge"].disk_gb == pytest.approx(2 * 7.509245952)


def test_counted_tokens_replace_assumed_ones(big: Path) -> None:
    encoded = big / "artifacts" / "big" / "encoded"
    encoded.mkdir(parents=True)
    tasks = [
        {"task": "a", "num_samples": 3, "num_tokens": 70, "num_loss_tokens": 9},
        {"task": "b", "num_samples": 2, "num_tokens": 30, "num_loss_tokens": 4},
    ]
    (encoded / "tasks.json").write_text(json.dumps(tasks))
    (encoded / "meta.json").write_text('{"merge_size": 2}')
    np.save(encoded / "grids.npy", np.array([[1, 4, 4], [1, 2, 4]], dtype=np.int32))
    np.save(encoded / "image_ids.npy", np.array([0, 1, 1], dtype=np.int32))
    mixture = gather("big", "h100x8")[0].mixture
    assert (mixture.num_tasks, mixture.num_examples) == (2, 5)
    assert (mixture.num_tokens, mixture.num_loss_tokens) == (100, 13)
    assert mixture.num_image_tokens == (16 + 8 + 8) / 4
    assert "counted in artifacts/big/encoded" in mixture.basis


def test_predicted_stands_beside_actual_and_the_papers(
    big: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timings = big / "artifacts" / "big" / "timings"
    timings.mkdir(parents=True)
    for stage, seconds in {"gradients": 5400, "train-joint-1ep-s1": 9000}.items():
        took = {"seconds": seconds, "peak_memory_mb": seconds, "peak_gpu_memory_mb": 2 * seconds}
        (timings / f"{stage}.json").write_text(json.dumps(took))
    (timings.parent / "gradients").mkdir()
    (timings.parent / "gradients" / "gradients.npy").write_bytes(bytes(3_000_000))
    lines = [{"step": i, "seconds": i, "tokens_per_second": r} for i, r in enumerate([1, 7, 8])]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (timings / "joint-1ep-s1.jsonl").write_text(text)
    main(["preflight", "big", "--gpu", "h100x8", "--after"])
    page = capsys.readouterr().out
    cells, peaks = (
        {
            line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in part.splitlines()
            if line.startswith("|")
        }
        for part in page.split("Peak memory, actual")
    )
    assert peaks["stage"] == [
        f"{said} {kind} GB" for kind in ("host", "GPU", "disk") for said in ("predicted", "actual")
    ]
    # 5,400 MB of 2^20 bytes; 139 tasks' strided gradients; 3 MB of them
    assert [peaks["gradients"][i] for i in (1, 3, 5)] == ["5.662", "11.32", "0.003"]
    assert float(peaks["gradients"][4]) == pytest.approx(4 * 617_187_738 * 139 / 1e9, rel=1e-3)
    assert [peaks["train"][i] for i in (1, 3, 5)] == ["9.437", "18.87", ""]
    assert cells["gradients"][1] == "1.5"
    assert cells["gradients"][-1] == "1h38m (136 datasets)"
    assert cells["joint-1ep"][1] == "2.5"
    assert cells["joint-1ep"][3:] == ["7", "4h22m"]
    assert cells["merit-3d"][1:] == ["", cells["merit-3d"][2], "", "5h24m"]
    work = gather("big", "h100x8")[0]
    expected = branch_hours(work, work.plan.branches["joint-1ep-s1"])
    assert float(cells["joint-1ep"][0]) == pytest.approx(expected, rel=1e-3)


def test_a_folder_of_ones_own_is_counted(big: Path) -> None:
    folder = big / "mine"
    folder.mkdir()
    (folder / "a.jsonl").write_text("x" * 44 + "\n" + "y" * 44 + "\n")  # 90 bytes: 20 tokens
    (folder / "b.jsonl").write_text("z" * 8 + "\n")
    own = BIG | {"name": "own", "data": {"source": "jsonl", "folder": "mine"}}
    (big / "experiments" / "own.yaml").write_text(yaml.safe_dump(own))
    mixture = gather("own", "h100")[0].mixture
    assert (mixture.num_tasks, mixture.num_examples) == (2, 3)
    assert mixture.num_tokens == pytest.approx(99 / 4.5)
    assert mixture.num_image_tokens == 0


@pytest.mark.parametrize(
    # `cards` of 80 GB would hold a branch uncut; an epoch of joint training is within `hours`
    ("name", "cards", "hours"),
    [
        ("vision_flan_3b", 1, 3),
        ("vision_flan_3b_llava", 1, 3),
        ("vision_176_7b", 2, 80),
        ("vision_176_7b_scaled", 2, 80),
        ("text_flan_3b", 1, 20),
    ],
)
def test_the_papers_experiments_can_be_estimated(name: str, cards: int, hours: float) -> None:
    work, unknown = gather(name, "h100x8")
    found = {row.stage: row for row in rows(work)}
    assert unknown == []
    assert 80 * (cards - 1) < (found["train"].gpu_gb or 0) < 80 * cards
    assert hours / 10 < branch_hours(work, work.plan.branches["joint-1ep-s1"]) < hours
    assert found["train"].runs == len(work.plan.branches)


def test_a_miniature_lacks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["preflight", "mini_vision"])
    page = capsys.readouterr().out
    assert "Nothing is missing." in page
    assert "on 2 x CPU core; 193,280 parameters of the decoder, 226,112 of the vision part" in page
