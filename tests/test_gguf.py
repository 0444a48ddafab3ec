"""A GGUF file as a base: its tensors, its tokenizer, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from merit.errors import MeritError
from merit.io.checkpoints import Checkpoint
from merit.train.gguf import checkpoint_place, unpack
from merit.train.model import load_model, load_processor

HIDDEN, WIDE, LAYERS, HEADS, VOCABULARY = 32, 64, 2, 2, 40
KEY = "base.checkpoint"
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"


def tokens() -> list[str]:
    """A vocabulary of bytes, with two special tokens in front."""
    letters = [chr(ord("a") + i) for i in range(26)]
    return ["<s>", "</s>", "Ġ", *letters, "ab", *(f"<{i}>" for i in range(VOCABULARY - 30))]


def write_llama(path: Path, quantised: bool = False) -> dict[str, np.ndarray]:
    """A tiny Llama with tied embeddings; {name in the file: the tensor that it stands for}."""
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (HIDDEN,),
            f"blk.{i}.ffn_norm.weight": (HIDDEN,),
            **{f"blk.{i}.attn_{x}.weight": (HIDDEN, HIDDEN) for x in ("q", "k", "v", "output")},
            **{f"blk.{i}.ffn_{x}.weight": (WIDE, HIDDEN) for x in ("gate", "up")},
            f"blk.{i}.ffn_down.weight": (HIDDEN, WIDE),
        }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens())
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * 38)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    kind = gguf.GGMLQuantizationType.Q8_0
    held = {}
    for name, shape in shapes.items():
        tensor = rng.standard_normal(shape, dtype=np.float32)
        if quantised and len(shape) == 2:
            data = gguf.quants.quantize(tensor, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            tensor = gguf.quants.dequantize(data, kind)
        else:
            writer.add_tensor(name, tensor)
        held[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.mark.parametrize("quantised", [False, True])
def test_the_folder_is_the_model_of_the_file(tmp_path: Path, quantised: bool) -> None:
    held = write_llama(tmp_path / "x.gguf", quantised)
    unpack(tmp_path / "x.gguf", tmp_path / "out", KEY)
    stored = Checkpoint(tmp_path / "out")
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
    ):
        assert torch.equal(stored.read(ours), torch.from_numpy(np.array(held[theirs])))
        assert stored.read(ours).dtype == torch.float32
    assert "lm_head.weight" not in stored.names  # tied: stored once
    assert len(stored.names) == len(held)
    # it can be saved again, which a model that is marked as quantised refuses
    model: Any = load_model(tmp_path / "out")
    processor = load_processor(tmp_path / "out")
    ids = processor("ab ba", return_tensors="pt")["input_ids"]
    assert processor.decode(ids[0]) == "ab ba"
    assert processor.apply_chat_template([{"content": "a"}], tokenize=False) == "<s>a</s>"
    before = model(ids).logits
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load_model(tmp_path / "again")(ids).logits, before)


def test_a_package_s_file_is_found_without_running_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = checkpoint_place("package:some_package/x.gguf", KEY)
    assert found == tmp_path / "some_package" / "x.gguf"
    assert checkpoint_place("models/y", KEY) == Path("models/y")


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeritError, match=r"`base\.checkpoint`: .*'none_such'"):
        checkpoint_place("package:none_such/x.gguf", KEY)
    with pytest.raises(MeritError, match=r"none\.gguf: no such file"):
        unpack(tmp_path / "none.gguf", tmp_path / "out", KEY)
    path = tmp_path / "x.gguf"
    write_llama(path)
    for content in (b"GGUF and then nothing of the kind", path.read_bytes()[:-2000]):
        path.write_bytes(content)
        with pytest.raises(MeritError, match=r"x\.gguf"):
            unpack(path, tmp_path / "out", KEY)
