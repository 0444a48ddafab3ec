"""The same questions through vLLM, where it is installed (`evaluation.generator: vllm`).

vLLM loads the model's folder, batches and schedules by itself; it is given the text in the chat
template and the images. Its kernels sum in another order than transformers' do, so an experiment's
models must all be answered by the same one of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merit.errors import MeritError
from merit.eval.answering.batches import Prompt, chat_text


class VllmModel:
    """A model's folder in vLLM. Raises MeritError where vLLM is not installed.

    Args: most_images: in one question. pixels: what images are scaled to lie between. dtype: what
    the model is held in; "stored" as its config.json says.
    """

    def __init__(
        self, folder: Path, most_images: int, pixels: tuple[int, int] | None, dtype: str = "stored"
    ) -> None:
        try:
            import vllm
        except ImportError:
            raise MeritError(
                "key `evaluation.generator`: vllm is not installed here; `pip install vllm`, or "
                "set `generator: transformers`"
            ) from None
        size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]} if pixels else None
        images: dict[str, Any] = {"limit_mm_per_prompt": {"image": most_images}}
        if size:
            images["mm_processor_kwargs"] = {"size": size}
        self._sampling = vllm.SamplingParams
        held = {"dtype": "auto" if dtype == "stored" else dtype}
        images = images if most_images else {}
        self._model = vllm.LLM(model=str(folder), seed=0, **held, **images)

    def generate(self, processor: Any, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy answers; the images are open only while they are answered."""
        requests, sampling = [], []
        for prompt in prompts:
            request: dict[str, Any] = {"prompt": chat_text(processor, prompt)}
            if prompt.images:
                images = [picture.open() for picture in prompt.images]
                request["multi_modal_data"] = {"image": images}
            requests.append(request)
            limits = {"max_tokens": prompt.max_new_tokens, "repetition_penalty": 1.0}
            sampling.append(self._sampling(temperature=0.0, **limits))
        outputs = self._model.generate(requests, sampling, use_tqdm=False)
        return [output.outputs[0].text.strip() for output in outputs]
