"""LoRA adapters merge as what they add to the weights, whatever peft wrote them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from merit.errors import MeritError
from merit.io.adapters import CONFIG, WEIGHTS, Adapter
from merit.io.checkpoint_files import SINGLE, checkpoint_hash
from merit.io.checkpoints import Checkpoint, save_tensors
from merit.merge.sources import open_branch
from merit.run.cli import main
from merit.train.model import check_architecture, load_model
from tests import tiny_models
from tests.conftest import Tiny

SETTINGS = {"peft_type": "LORA", "lora_alpha": 6, "bias": "none", "init_lora_weights": True}
BASE = {"m.q.weight": torch.zeros(2, 3), "m.e.weight": torch.zeros(4, 2)}
FACTORS = {
    "base_model.model.m.q.lora_A.weight": torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]),
    "base_model.model.m.q.lora_B.weight": torch.tensor([[1.0, 0.0], [0.0, 10.0]]),
    "base_model.model.m.e.lora_embedding_A": torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
    "base_model.model.m.e.lora_embedding_B": torch.tensor([[1.0], [-1.0]]),
}


def no_names(names: Any) -> dict[str, str]:
    return {name: name for name in names}


def adapter(folder: Path, factors: dict[str, torch.Tensor], **settings: Any) -> Adapter:
    """An adapter's folder beside the base's."""
    (folder / "base").mkdir(exist_ok=True)
    save_tensors(BASE, folder / "base" / SINGLE)
    (folder / "adapter").mkdir(exist_ok=True)
    save_tensors(factors, folder / "adapter" / WEIGHTS)
    (folder / "adapter" / CONFIG).write_text(json.dumps(SETTINGS | settings))
    return Adapter(folder / "adapter", Checkpoint(folder / "base"), no_names)


def test_what_is_added_by_hand(tmp_path: Path) -> None:
    """s = 6 / 2 for the matrix of rank 2, 6 / 1 for the embedding, which is transposed."""
    found = adapter(tmp_path, FACTORS)
    assert found.names == sorted(BASE)
    assert found.read("m.q.weight").tolist() == [[3.0, 6.0, 9.0], [0.0, 30.0, 0.0]]
    assert found.read("m.q.weight", 1, 2).tolist() == [[0.0, 30.0, 0.0]]
    assert found.read("m.e.weight").tolist() == [[6 * k, -6 * k] for k in (1.0, 2.0, 3.0, 4.0)]
    assert found.read("m.e.weight", 2, 3).tolist() == [[18.0, -18.0]]


def test_scales_of_single_modules(tmp_path: Path) -> None:
    """alpha_pattern by the end of a module's name; rsLoRA divides by the root of the rank."""
    found = adapter(tmp_path, FACTORS, use_rslora=True, alpha_pattern={"q": 8, "x.e": 1})
    scale = 8 / 2**0.5
    assert_close(found.read("m.q.weight")[0], scale * torch.tensor([1.0, 2.0, 3.0]).double())
    assert found.read("m.e.weight")[0].tolist() == [6.0, -6.0]


@pytest.mark.parametrize(
    ("factors", "settings", "message"),
    [
        ({}, {"peft_type": "IA3"}, f"/{CONFIG}: key `peft_type`: found 'IA3', expected 'LORA'"),
        ({}, {"use_dora": True}, f"/{CONFIG}: key `use_dora`: found True, with which the adapter"),
        ({}, {"bias": "all"}, f"/{CONFIG}: key `bias`: found 'all'"),
        ({}, {"init_lora_weights": "pissa"}, "key `init_lora_weights`: found 'pissa'"),
        ({}, {"lora_alpha": None}, "key `lora_alpha` is missing or no number"),
        ({}, {"alpha_pattern": {"(": 1}}, r"key `alpha_pattern`: '\('.*regular expression"),
        ({}, {"alpha_pattern": {"q": "8"}}, "key `alpha_pattern`: 'q': '8' is no number"),
        (
            {"base_model.model.m.v.lora_A.weight": torch.zeros(1, 3)},
            {},
            rf"/{WEIGHTS}: tensor 'base_model.model.m.v.lora_A.weight' is one factor of two",
        ),
        (
            {
                "base_model.model.m.v.lora_A.weight": torch.zeros(1, 3),
                "base_model.model.m.v.lora_B.weight": torch.zeros(2, 1),
            },
            {},
            rf"/{WEIGHTS}: adapts 'm.v.weight', which does not exist in the base .*/{SINGLE}",
        ),
        (
            {"base_model.model.m.q.lora_B.weight": torch.zeros(5, 2)},
            {},
            r"what is added to 'm.q.weight' has shape \(5, 3\), the base .* has \(2, 3\)",
        ),
        (
            {"base_model.model.m.q.lora_B.weight": torch.zeros(2, 1)},
            {},
            r"what is added to 'm.q.weight' has shape \(2, 1, 2, 3\), the base",
        ),
    ],
)
def test_what_is_no_delta_is_refused(
    tmp_path: Path, factors: dict[str, torch.Tensor], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(MeritError, match=message) as caught:
        adapter(tmp_path, FACTORS | factors, **settings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own, of transformers
def test_adapters_of_peft_merge_like_merged_models(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two adapters of a Qwen2.5-VL, whose tensors have other names in files than in memory.

    The merge of adapters is the merge of the models that peft makes of them, and not the average
    of their factors.
    """
    peft = pytest.importorskip("peft")
    tiny.model.save_pretrained(tmp_path / "base")
    decoder = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    for k in (1, 2):
        config = peft.LoraConfig(
            r=2 * k, lora_alpha=8, target_modules=decoder, modules_to_save=["norm"]
        )
        model = peft.get_peft_model(copy.deepcopy(tiny.model), config)
        generator = torch.Generator().manual_seed(k)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.1 * noise)
        model.save_pretrained(tmp_path / f"adapter{k}")
        model.merge_and_unload().save_pretrained(tmp_path / f"model{k}")
    for kind in ("adapter", "model"):
        parts = [str(tmp_path / f"{kind}{k}") for k in (1, 2)]
        main(["merge", "--base", str(tmp_path / "base"), "--branches", *parts, "--weights", "1",
              "3", "--out", str(tmp_path / kind)])  # fmt: skip
    start, ours, theirs = (
        load_file(tmp_path / name / SINGLE) for name in ("base", "adapter", "model")
    )
    assert ours.keys() == theirs.keys() == start.keys()
    moved = {name for name in start if not torch.equal(ours[name], start[name])}
    layer = "model.layers.0."
    attention = {f"{layer}self_attn.{name}.weight" for name in ("q_proj", "v_proj")}
    norms = {f"{layer}{place}_layernorm.weight" for place in ("input", "post_attention")}
    assert moved == attention | norms | {f"{layer}mlp.down_proj.weight", "model.norm.weight"}
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor, atol=1e-6, rtol=1e-5)
    assert "adapter1: 6 tensors of " in capsys.readouterr().out


# --- tied embeddings ------------------------------------------------------------------------------

TIED: dict[str, dict[str, Any]] = {
    "embedding whole": {"modules_to_save": ["embed_tokens"]},
    "embedding low": {"target_modules": ["q_proj", "embed_tokens"]},
    "head whole": {"modules_to_save": ["lm_head"]},
    "head low": {"target_modules": ["q_proj", "lm_head"]},
}


@pytest.mark.filterwarnings("ignore")  # peft's own, of tied weights
@pytest.mark.parametrize("ensured", [False, True])
@pytest.mark.parametrize("kind", TIED)
def test_an_adapter_that_unties_the_embeddings_is_refused(
    tmp_path: Path, kind: str, ensured: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `ensure_weight_tying` it does not, and the merge has the logits of the adapted model."""
    peft = pytest.importorskip("peft")
    from transformers import LlamaForCausalLM

    tiny_models.llama(tmp_path / "untied")
    config = LlamaForCausalLM.from_pretrained(tmp_path / "untied").config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(
        r=2, ensure_weight_tying=ensured, **{"target_modules": ["q_proj"], **TIED[kind]}
    )
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(50)[None]
    adapted = model(tokens).logits
    command = ["merge", "--base", str(tmp_path / "base"), "--branches", str(tmp_path / "adapter")]
    command += ["--out", str(tmp_path / "out")]
    if not ensured:
        with pytest.raises(SystemExit):
            main(command)
        assert "`ensure_weight_tying`" in capsys.readouterr().err
        return
    main(command)
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert_close(merged(tokens).logits, adapted, atol=1e-4, rtol=1e-4)


def test_a_model_beside_an_adapter_is_refused_wherever_it_is_opened(tmp_path: Path) -> None:
    tiny_models.llama(tmp_path)
    (tmp_path / CONFIG).write_text("{}")
    for opened in (Checkpoint, checkpoint_hash, load_model, check_architecture):
        with pytest.raises(MeritError, match=f"found a whole model and an adapter .{CONFIG}"):
            opened(tmp_path)
    (tmp_path / "base").mkdir()
    save_tensors(BASE, tmp_path / "base" / SINGLE)
    with pytest.raises(MeritError, match="found a whole model and an adapter"):
        open_branch(tmp_path, Checkpoint(tmp_path / "base"), tmp_path / "base")
