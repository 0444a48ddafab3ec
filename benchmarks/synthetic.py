"""Real shapes with random weights, and mixtures of random tokens: only for speed and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from merit.io.artifacts import REPORTS_DIR
from merit.train.dataset import TokenizedDataset
from merit.train.sizes import public_config

IMAGE_PATCHES = (1, 32, 32)  # 448 x 448 pixels: 256 tokens


def device_name() -> str:
    """The GPU's name, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def result_file(name: str) -> Path:
    """reports/benchmarks/<name>-<device>.json."""
    device = device_name().lower().replace(" ", "-")
    return REPORTS_DIR / "benchmarks" / f"{name}-{device}.json"


def random_model(shape: str, device: str, dtype: torch.dtype) -> Any:
    """A Qwen2.5-VL of merit/train/sizes.yaml, or a small Qwen2 for CPUs ("small"); seed 0."""
    import transformers

    torch.manual_seed(0)
    if shape == "small":
        config: Any = transformers.Qwen2Config(
            vocab_size=8192,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        kind: Any = transformers.Qwen2ForCausalLM
    else:
        config = transformers.Qwen2_5_VLConfig.from_dict(public_config(shape))
        kind = transformers.Qwen2_5_VLForConditionalGeneration
    with torch.device(device):
        return kind._from_config(config, dtype=dtype).eval()


def random_mixture(
    num_examples: int, vocabulary: int, image_token: int = -1, seed: int = 0, median: int = 140
) -> TokenizedDataset:
    """Examples of log-normal length, as instruction data have it (sigma 0.8, 16 to 2,048 tokens).

    The last fifth of each bears the loss. With `image_token`, every example begins with an image of
    256 tokens; its pixels are drawn once.
    """
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(median), 0.8, num_examples)), 16, 2048).astype(int)
    height, width = IMAGE_PATCHES[1:]
    num_image = height * width // 4 if image_token >= 0 else 0
    tokens, loss_mask = [], []
    for length in lengths:
        text = rng.integers(10, min(vocabulary, 100_000), length)
        tokens += [np.full(num_image, image_token), text]
        loss_mask += [np.zeros(num_image + length - length // 5, bool), np.ones(length // 5, bool)]
    with_image = num_examples if num_image else 0
    pixels = torch.randn(height * width, 1176, generator=torch.Generator().manual_seed(seed))

    def read(paths: Any) -> tuple[torch.Tensor, torch.Tensor]:
        grids = torch.tensor([IMAGE_PATCHES]).expand(len(paths), 3)
        return pixels.repeat(len(paths), 1), grids

    return TokenizedDataset(
        tokens=np.concatenate(tokens).astype(np.int32),
        loss_mask=np.concatenate(loss_mask),
        offsets=np.cumsum([0, *(lengths + num_image)]),
        image_offsets=np.arange(num_examples + 1) * bool(num_image),
        image_ids=np.arange(with_image, dtype=np.int32),
        grids=np.tile(np.array(IMAGE_PATCHES, dtype=np.int32), (with_image, 1)),
        paths=np.array([b"random"] * with_image, dtype=bytes),
        feature_offsets=np.zeros(1, dtype=np.int64),
        features=np.zeros((0, 0), dtype=np.float32),
        image_token=image_token,
        read_images=read,
    )
