"""The same questions through vLLM, if it is installed (`evaluation.generator: vllm`).

vLLM loads the model's folder, batches and schedules by itself; it is given the text in the chat
template and the images. Its kernels sum in another order than transformers' do, so all models of an
experiment must be answered by the same generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merit.errors import MeritError
from merit.eval.answering.batches import Prompt, chat_text, image_size

QUESTIONS = 1024  # that it schedules at a time; their images are open together


def load(folder: Path, prompts: Sequence[Prompt], dtype: str = "stored") -> Any:
    """vLLM's model of a folder, ready for these prompts; `dtype` "stored" is config.json's.

    Raises MeritError if vLLM is not installed or the prompts have several ranges of pixels.
    """
    try:
        import vllm
    except ImportError:
        raise MeritError(
            "key `evaluation.generator`: vllm is not installed here; `pip install vllm`, or "
            "set `generator: transformers`"
        ) from None
    if len({prompt.pixels for prompt in prompts}) > 1:
        raise MeritError(
            "key `evaluation.generator`: vllm takes one range of pixels for a model, and "
            "the benchmarks have several; set `generator: transformers`"
        )
    options: dict[str, Any] = {}
    most_images = max(len(prompt.images) for prompt in prompts)
    if most_images:
        options["limit_mm_per_prompt"] = {"image": most_images}
        if size := image_size(prompts[0]):
            options["mm_processor_kwargs"] = {"size": size}
    held = "auto" if dtype == "stored" else dtype
    return vllm.LLM(model=str(folder), seed=0, dtype=held, **options)


def generate(model: Any, processor: Any, prompts: Sequence[Prompt]) -> list[str]:
    """Greedy answers; images are open only while they are answered."""
    from vllm import SamplingParams

    requests, sampling = [], []
    for prompt in prompts:
        request: dict[str, Any] = {"prompt": chat_text(processor, prompt)}
        if prompt.images:
            images = [picture.open() for picture in prompt.images]
            request["multi_modal_data"] = {"image": images}
        requests.append(request)
        sampling.append(
            SamplingParams(
                temperature=0.0, max_tokens=prompt.max_new_tokens, repetition_penalty=1.0
            )
        )
    outputs = model.generate(requests, sampling, use_tqdm=False)
    return [output.outputs[0].text.strip() for output in outputs]
