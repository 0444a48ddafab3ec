"""retention: what a model still does as the base did, where nothing of it was trained.

The base answers a few everyday prompts. Every model's loss per token on those answers says how far
it has moved from them; the length of its own answers says whether it still answers at length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merit.config import Encoding, Experiment
from merit.data.examples import make_example
from merit.eval.answering.batches import Prompt, prepared, split
from merit.eval.answering.generate import generate
from merit.eval.measuring.models import finished_models
from merit.eval.measuring.scores import Row, columns, mean_interval
from merit.eval.studies.retention import Retention
from merit.io.artifacts import Artifacts
from merit.io.progress import Progress
from merit.train.dataset import TokenizedDataset
from merit.train.loss import forward_loss
from merit.train.model import load_model, load_processor, use_one_thread
from merit.train.tokenize import encode_examples

PROMPTS = Path(__file__).with_name("prompts.txt")  # one a line


def measure(experiment: Experiment, paths: Artifacts, settings: Retention) -> dict[str, Any]:
    """A row per model: mean loss per token on the base's answers, and mean words of its own.

    The intervals (95 %) are over prompts.
    """
    use_one_thread()
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    processor = load_processor(paths.base)
    base = load_model(paths.base, experiment.model)
    reference = answers(base, processor, prompts, settings)
    data = encoded(processor, prompts, reference, experiment.encoding)
    rows: list[Row] = []
    shown: list[Row] = [{"prompt": p, "base": a} for p, a in zip(prompts, reference, strict=True)]
    models = finished_models(experiment, paths)
    with Progress(f"{experiment.name}, retention", len(models)) as progress:
        for model in models:
            loaded, own = base, reference
            if model.rule != "base":
                loaded = load_model(paths.model(model.id), experiment.model)
                own = answers(loaded, processor, prompts, settings)
            rows.append(
                {
                    "model": model.id,
                    "method": model.method,
                    "seed": model.seed,
                    **columns("loss", loss_interval(loaded, data)),
                    **columns("words", mean_interval([len(answer.split()) for answer in own])),
                    "same_answers": sum(a == b for a, b in zip(own, reference, strict=True)),
                }
            )
            for row, answer in zip(shown, own, strict=True):
                row[model.id] = answer
            progress.advance()
    means = {key: {row["model"]: row[key] for row in rows} for key in ("loss", "words")}
    return {
        "tables": {"retention": rows, "answers": shown},
        "summary": {"num_prompts": len(prompts), **means},
    }


def loss_interval(model: Any, data: TokenizedDataset) -> tuple[float, float | None, float | None]:
    """Mean loss per supervised token, L = sum_i m_i L_i / sum_i m_i over prompts i, low and high.

    A ratio of means: the interval is that of the mean of L + n m_i (L_i - L) / sum_i m_i.
    """
    targets = data.num_targets(np.arange(len(data)))
    with torch.inference_mode():
        losses = [forward_loss(model, data.batch([i]), None).item() for i in range(len(data))]
    shares = targets / targets.sum()
    mean = float(shares @ losses)
    return mean_interval(mean + len(data) * shares * (np.array(losses) - mean))


def answers(model: Any, processor: Any, prompts: Sequence[str], settings: Retention) -> list[str]:
    """The model's greedy answers, in the order of the prompts."""
    asked = [Prompt((prompt,), settings.max_new_tokens) for prompt in prompts]
    found: dict[int, str] = {}
    for batch in prepared(processor, asked, split(processor, asked, settings.batch_size)):
        texts = generate(model, processor, batch)
        found |= dict(zip(batch.questions, texts, strict=True))
    return [found[i] for i in range(len(prompts))]


def encoded(
    processor: Any, prompts: Sequence[str], texts: Sequence[str], encoding: Encoding
) -> TokenizedDataset:
    """Prompts with the base's answers, as training would read them; an empty answer is left out."""
    examples = [
        make_example(f"everyday-{i}", "everyday", [(prompt, text)], ())
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        if text
    ]
    return encode_examples(examples, processor, {}, np.zeros((0, 3), dtype=np.int32), encoding)
