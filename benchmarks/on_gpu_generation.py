"""Questions a second of our batched generation, random weights of a real shape, on any device.

    python -m benchmarks.on_gpu_generation --shape Qwen2.5-VL-3B-Instruct 512

Every question has an image of 256 tokens, if the shape reads images, and is answered with 32
tokens. Writes reports/benchmarks/generation-<device>.json.
"""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.synthetic import IMAGE_PATCHES, device_name, random_model, result_file
from merit.io.artifacts import write_json
from merit.train.attention import choose_attention

LENGTH = 60  # tokens of a question


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("questions", type=int)
    options.add_argument("--shape", default="small")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--length", type=int, default=32, help="tokens of an answer")
    given = options.parse_args()
    batch, new = given.batch, given.length
    on_gpu = torch.cuda.is_available()
    device = "cuda:0" if on_gpu else "cpu"
    model = random_model(given.shape, device, torch.bfloat16 if on_gpu else torch.float32)
    choose_attention(model, "auto", low=on_gpu, generates=True)
    generator = torch.Generator().manual_seed(0)
    image = getattr(model.config, "image_token_id", None)
    shown = 256 if image is not None else 0
    ids = torch.randint(10, 8000, (batch, shown + LENGTH), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if image is not None:
        ids[:, :shown] = image
        patches = IMAGE_PATCHES[1] * IMAGE_PATCHES[2]
        inputs["pixel_values"] = torch.randn(patches, 1176, generator=generator).repeat(batch, 1)
        inputs["image_grid_thw"] = torch.tensor([IMAGE_PATCHES] * batch)
        inputs["mm_token_type_ids"] = (ids == image).int()
    given_to = {name: tensor.to(device) for name, tensor in inputs.items()}
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + max(1, given.questions // batch)):
            began = time.monotonic()
            answers = model.generate(
                **given_to, max_new_tokens=new, min_new_tokens=new, do_sample=False
            )
            assert answers.cpu().shape[1] == shown + LENGTH + new
            seconds.append(time.monotonic() - began)
    rate = batch * (len(seconds) - 1) / sum(seconds[1:])  # the first one warms up
    result = {
        "device": device_name(),
        **{"shape": given.shape, "batch": batch, "new_tokens": new, "questions_per_second": rate},
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }
    write_json(result_file("generation"), result)
    print(result)


if __name__ == "__main__":
    main()
