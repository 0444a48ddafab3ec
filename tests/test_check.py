"""What an experiment takes and lacks: counts exact, disk and hours by hand, gaps by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import yaml

from merit.check import estimate, missing
from merit.config import Lora, load_experiment, load_params
from merit.config.data import SourceName
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, write_json
from merit.run.cli import main
from merit.train.sizes import Sizes, base_sizes, config_sizes, origin_sizes, public_config

ROOT = Path(__file__).parents[1]
VISION = 631_975_680

# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hub", "decoder", "vision"),
    [
        ("Qwen/Qwen2.5-3B", 3_085_938_688, 0),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, 0),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_085_938_688, VISION + 36_708_608),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 7_615_616_512, VISION + 44_574_464),
    ],
)
def test_the_papers_models_are_counted_exactly(hub: str, decoder: int, vision: int) -> None:
    found = config_sizes(public_config(hub), hub)
    assert (found.decoder, found.vision, found.width) == (decoder, vision, 2)
    if hub.endswith("VL-3B-Instruct"):
        # inputs + outputs of q, k, v, o, gate, up and down
        layer = 2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11_008)
        assert found.trained(Lora(rank=64)) == 64 * 36 * layer
        assert (found.trained(None), found.patches, found.hidden) == (decoder, 4, 2048)


def test_a_base_is_counted_without_building_it(tmp_path: Path) -> None:
    assembled = base_sizes(load_experiment("vision_176_7b").base, tmp_path)
    assert assembled == config_sizes(public_config("Qwen2.5-VL-7B"), "")
    found = base_sizes(load_experiment("mini_text_recipe").base, tmp_path)
    assert (found.decoder, found.vision, found.width) == (193_280, 0, 4)


def test_an_unknown_base_is_refused_by_name(tmp_path: Path) -> None:
    base = load_experiment("mini_text").base
    other = base.model_copy(update={"checkpoint": None, "hub": "a/none", "revision": "0"})
    with pytest.raises(MeritError, match=r"no config.json of a/none"):
        base_sizes(other, tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(MeritError, match="found 'GPT2LMHeadModel', expected Qwen2_5_VL"):
        base_sizes(other, tmp_path)


@pytest.mark.parametrize("package", [False, True])
def test_a_gguf_file_is_measured_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: bool
) -> None:
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").touch()
    path = tmp_path / "a_package" / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "block_count": 3,
        "context_length": 64,
        "embedding_length": 16,
        "feed_forward_length": 40,
        "head_count": 4,
        "head_count_kv": 2,
        "layer_norm_rms_eps": 1e-5,
        "vocab_size": 100,
    }.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tensor("token_embd.weight", np.zeros((100, 16), dtype=np.float32))
    for part in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{part}_to_file")()
    writer.close()
    monkeypatch.syspath_prepend(tmp_path)
    place = "package:a_package/x.gguf" if package else str(path)
    base = load_experiment("mini_text").base.model_copy(update={"checkpoint": place})
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 40 + 2 * 16
    found = origin_sizes(base)
    assert (found.decoder, found.width) == (3 * layer + 16 + 100 * 16, 4)
    path.write_bytes(b"GGUF")
    with pytest.raises(MeritError, match=r"x\.gguf: "):
        origin_sizes(base)


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
        "checkpoint_minutes": 30,
        "optimizer": {"learning_rate": 1e-5, "batch_size": 128},
    },
    "methods": {"joint-1ep": {"partition": "joint"}, "merit-3d": {"partition": "merit", "axes": 3}},
    "evaluation": {
        "benchmarks": ["mathvista"],
        "judge": {"url": "http://127.0.0.1/v1", "model": "some-model", "key_variable": "NO_KEY"},
    },
    "report": {"title": "Big", "paper_table": "table02_vision_flan_3b"},
}
DECODER = 3_085_938_688
SIZES = Sizes(
    DECODER, 668_684_288, 2048, 4, 2, {}, layers=36, intermediate=11_008, vocabulary=151_936
)


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the experiment `big`; no token of the hub, which is off, and no GPU."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "big.yaml").write_text(yaml.safe_dump(BIG))
    (tmp_path / "params.yaml").write_text("experiments: [big]\nworkers: 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMUData", str(tmp_path / "kit"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("NO_KEY", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    return tmp_path


@pytest.fixture
def lacks(big: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `merit check` says is missing of `big` with other blocks."""

    def run(**blocks: Any) -> str:
        changed = BIG | {"name": "other"} | blocks
        (big / "experiments" / "other.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(SystemExit) as ended:
            main(["check", "other"])
        assert ended.value.code == 1
        return capsys.readouterr().out.partition("Missing (")[2]

    return run


def test_questions_are_looked_for_before_training(big: Path) -> None:
    with pytest.raises(MeritError, match=r"missing before training: VLMEvalKit's MathVista_MINI"):
        missing.check_questions("big")


def test_a_folder_that_may_not_be_written_is_named(
    big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert next(missing.missing_space([], {})) == f"the right to write into {big.resolve()}"


def test_what_is_missing_is_named(
    lacks: Callable[..., str], big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = BIG["data"] | {"sources": [*BIG["data"]["sources"], {"name": "laion_gpt4v"}]}
    training = BIG["training"] | {"kernels": "liger"}
    training["optimizer"] = training["optimizer"] | {"algorithm": "adamw_8bit"}
    found = lacks(data=data, model={"attention": "flash_attention_2"}, training=training)
    goes = (
        "vlguard (gated)",
        "image folder sources/images of lvis_instruct4v (coco, 19 GB)",
        "sources/laion_gpt4v/fetched.jsonl",
        "MathVista_MINI.tsv",
        "environment variable NO_KEY",
    )
    for part in (
        *goes,
        "vision_flan_1k, vlguard, lvis_instruct4v, laion_gpt4v, Qwen/Qwen2.5-VL-3B-Instruct",
        "lrv_instruction in sources/lrv_instruction",
        *("package flash_attn", "package liger_kernel", "package torchao"),
        f"a GPU: {DECODER:,} parameters",
    ):
        assert part in found
    # each goes once it is there
    for path in ("kit/MathVista_MINI.tsv", "sources/laion_gpt4v/fetched.jsonl", "sources/images/x"):
        (big / path).parent.mkdir(parents=True, exist_ok=True)
        (big / path).touch()
    monkeypatch.setenv("NO_KEY", "x")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "x")
    again = lacks(data=data)
    assert [part for part in goes if part in again] == []


JUDGE = BIG["evaluation"]["judge"]


@pytest.mark.parametrize(
    ("blocks", "named", "there"),
    [
        (
            {
                "data": {
                    "source": "public",
                    "download": False,
                    "sources": [{"name": "vision_flan_1k"}],
                }
            },
            "sources/vision_flan_1k, and `data.download`",
            "",
        ),
        ({"evaluation": {"benchmarks": ["humaneval"]}}, "isolation for humaneval: no room", ""),
        ({"evaluation": {"benchmarks": ["boolq"]}}, "`boolq` finds no data in the hub", ""),
        (
            {"evaluation": {"benchmarks": ["boolq"], "text_data": "texts"}},
            "`evaluation.text_data`: no folder texts",
            "texts/x",
        ),
        ({"evaluation": {"benchmarks": ["mmvet"]}}, "`evaluation.judge`", ""),
        (
            {"evaluation": BIG["evaluation"] | {"judge": JUDGE | {"replay_only": True}}},
            "the judge's recorded answers",
            "artifacts/other/judgements.jsonl",
        ),
    ],
)
def test_a_benchmark_has_its_data_its_judge_and_its_isolation(
    lacks: Callable[..., str],
    big: Path,
    monkeypatch: pytest.MonkeyPatch,
    blocks: dict[str, Any],
    named: str,
    there: str,
) -> None:
    def refuse(_: Path) -> None:
        raise MeritError("no room")

    monkeypatch.setattr("merit.eval.answering.sandbox.check_isolation", refuse)
    if "humaneval" in named:
        monkeypatch.setattr("merit.eval.answering.lm_public.check_data", lambda *_: None)
    assert named in lacks(**blocks)
    if there:  # then it is not missing
        (big / there).parent.mkdir(parents=True)
        (big / there).touch()
        assert named not in lacks(**blocks)


def test_gpus_that_are_asked_for_and_not_there(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, launch = load_experiment("big"), load_params().launch

    def found(count: int, gigabytes: float, **changes: Any) -> str:
        room = type("Card", (), {"total_memory": gigabytes * 1e9})
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: room)
        changed = launch.model_copy(update=changes)
        return "\n".join(missing.missing_machine(experiment, SIZES, changed))

    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda _: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a V100")
    # 16 bytes per trained parameter, and the frozen vision part in bfloat16
    assert f"cut over processes {16 * DECODER / 1e9:.1f}, frozen 1.3" in found(1, 40)
    assert "bfloat16, which a V100 lacks" in found(1, 80)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda _: True)
    assert found(1, 80) == ""
    assert found(2, 40, gpus_per_branch=2) == ""
    assert found(2, 80, gpus_per_branch=4) == (
        "4 GPUs per branch (`launch.gpus_per_branch`): there are 2"
    )
    assert "GPU" not in found(0, 0, backend="slurm")


# --- amounts, disk, hours -------------------------------------------------------------------------


def test_a_mixture_is_assumed_then_counted(big: Path) -> None:
    experiment, paths = load_experiment("big"), Artifacts("big")
    found = estimate.mixture(experiment, paths)
    examples = 136 * 500 + 2_000 + 222_711 + 300_000
    assert (found.tasks, found.examples) == (139, examples)
    assert found.text == 200 * examples
    assert found.image == pytest.approx(examples * 640 * 480 / 784)
    tasks = [{"num_samples": 3, "num_tokens": 70}, {"num_samples": 2, "num_tokens": 30}]
    write_json(paths.encoded / "tasks.json", tasks)
    write_json(paths.encoded / "meta.json", {"merge_size": 2})
    np.save(paths.encoded / "grids.npy", np.array([[1, 4, 4], [1, 2, 4]], dtype=np.int32))
    np.save(paths.encoded / "image_ids.npy", np.array([0, 1, 1], dtype=np.int32))
    found = estimate.mixture(experiment, paths)
    assert (found.tasks, found.examples, found.text, found.image) == (2, 5, 92, 8)
    assert set(get_args(SourceName)) <= set(estimate.known()["sources"])


def test_generated_and_own_mixtures_are_counted_from_their_files(big: Path) -> None:
    mini = load_experiment("mini_text", ROOT / "experiments")
    assert estimate.mixture(mini, Artifacts("x")).tasks == 136
    written = [{"num_examples": 30}, {"num_examples": 12}]
    write_json(Artifacts("x").mixture / "tasks.json", written)
    found = estimate.mixture(mini, Artifacts("x"))
    assert (found.tasks, found.examples, found.image) == (2, 42, 0)
    folder = big / "mine"
    folder.mkdir()
    (folder / "a.jsonl").write_text("x" * 44 + "\n" + "y" * 44 + "\n")
    (folder / "b.jsonl").write_text("z" * 8 + "\n")
    own = BIG | {"name": "own", "data": {"source": "jsonl", "folder": "mine"}}
    (big / "experiments" / "own.yaml").write_text(yaml.safe_dump(own))
    found = estimate.mixture(load_experiment("own"), Artifacts("own"))
    assert (found.tasks, found.examples) == (2, 3)
    assert found.text == pytest.approx(99 / 4.5)


def test_disk_downloads_and_hours_by_hand(big: Path) -> None:
    experiment, paths = load_experiment("big"), Artifacts("big")
    amount = estimate.Amount(139, 1000, 3e5, 7e5, "")
    parts = estimate.disk(experiment, paths, SIZES, amount, load_params())
    model = 2 * (SIZES.decoder + SIZES.vision)
    assert {part.name: (part.number, part.size) for part in parts} == {
        "data": (1, 4.5 * 3e5),
        "base": (1, model),
        "encoded": (1, 5e6),
        "gradients": (139, 4 * 139 * -(-DECODER // 5)),
        "branches": (9, 9 * 4 * DECODER),  # joint, and eight of an eighth
        "models": (2, 2 * model),
        "checkpoints": (2, 2 * 12 * DECODER),
    }
    paths.base.mkdir(parents=True)
    (paths.base / "x").write_bytes(b"123")
    assert [part.there for part in parts] == [0, 3, 0, 0, 0, 0, 0]
    assert estimate.downloads(experiment, paths) == {
        "vision_flan_1k": 36.4,
        "vlguard": None,
        "lvis_instruct4v": 0.36,
        "Qwen/Qwen2.5-VL-3B-Instruct": model / 1e9,
    }
    # 1,000 examples for the gradients, as many for the joint branch and for the eight together
    flop = 6 * DECODER * 1e6 + 2 * 4 * SIZES.vision * 7e5
    one = flop / (500e12 * 0.5) / 3600
    assert estimate.gpu_hours(experiment, SIZES, amount, 250.0) == pytest.approx(
        {"base": 0, "gradients": one, "branches": 2 * one}
    )


def test_disk_that_is_there_is_not_needed_again(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (big / "x").write_bytes(bytes(1000))
    part = [estimate.Part("x", 1, 2e12, None)]
    (line,) = missing.missing_space(part, {"a": 5.0, "b": None})
    assert line.startswith("disk: 4,005.0 GB (DVC's cache keeps a copy), ")
    (big / ".dvc").mkdir()
    (big / ".dvc" / "config").write_text("[cache]\n    type = reflink,hardlink,copy\n")
    (line,) = missing.missing_space(part, {})
    assert line.startswith("disk: 2,000.0 GB, ")
    assert list(missing.missing_space([estimate.Part("x", 1, 1000, big)], {})) == []


@pytest.mark.parametrize(
    ("name", "low", "high"), [("vision_176_7b", 100, 1000), ("text_flan_3b", 30, 300)]
)
def test_the_papers_experiments_can_be_estimated(name: str, low: float, high: float) -> None:
    experiment, paths = load_experiment(name), Artifacts(name)
    amount = estimate.mixture(experiment, paths)
    hours = estimate.gpu_hours(experiment, base_sizes(experiment.base, paths.base), amount, 400)
    assert low < sum(hours.values()) < high


def test_a_miniature_lacks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "mini_vision"])
    found = capsys.readouterr().out
    assert "Nothing is missing." in found
    assert "193,280 parameters in the decoder, 226,112 in the vision part" in found
    main(["check", "mini_vision", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == {"decoder": 193_280, "vision": 226_112}
    assert (facts["mixture"]["tasks"], facts["missing"]) == (136, [])
