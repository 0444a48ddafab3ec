"""Questions a second of our batched generation, random weights of a real shape, on any device.

    python -m benchmarks.on_gpu_generation --shape Qwen2.5-VL-3B-Instruct 512

Every question has an image of 256 tokens, if the shape reads images, and is answered with 32
tokens. Writes reports/benchmarks/generation-<device>.json.
"""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.synthetic import IMAGE_PATCHES, random_model
from merit.io.artifacts import REPORTS_DIR, write_json
from merit.train.attention import choose_attention

LENGTH, NEW, BATCH = 60, 32, 64


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("questions", type=int)
    options.add_argument("--shape", default="small")
    given = options.parse_args()
    on_gpu = torch.cuda.is_available()
    device = "cuda:0" if on_gpu else "cpu"
    model = random_model(given.shape, device, torch.bfloat16 if on_gpu else torch.float32)
    choose_attention(model, "auto", low=on_gpu, generates=True)
    generator = torch.Generator().manual_seed(0)
    image = getattr(model.config, "image_token_id", None)
    shown = 256 if image is not None else 0
    ids = torch.randint(10, 8000, (BATCH, shown + LENGTH), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if image is not None:
        ids[:, :shown] = image
        patches = IMAGE_PATCHES[1] * IMAGE_PATCHES[2]
        inputs["pixel_values"] = torch.randn(patches, 1176, generator=generator).repeat(BATCH, 1)
        inputs["image_grid_thw"] = torch.tensor([IMAGE_PATCHES] * BATCH)
        inputs["mm_token_type_ids"] = (ids == image).int()
    given_to = {name: tensor.to(device) for name, tensor in inputs.items()}
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + max(1, given.questions // BATCH)):
            began = time.monotonic()
            answers = model.generate(
                **given_to, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
            )
            assert answers.cpu().shape[1] == shown + LENGTH + NEW
            seconds.append(time.monotonic() - began)
    rate = BATCH * (len(seconds) - 1) / sum(seconds[1:])  # the first one warms up
    result = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        **{"shape": given.shape, "batch": BATCH, "new_tokens": NEW, "questions_per_second": rate},
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }
    write_json(REPORTS_DIR / "benchmarks" / f"generation-{'gpu' if on_gpu else 'cpu'}.json", result)
    print(result)


if __name__ == "__main__":
    main()
