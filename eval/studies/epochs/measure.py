"""epochs: joint and merged over training length (tables 1, 6, 7; claims C8, C9, C10).

Distance from the base, loss on the mixture, held-out score, and the loss under isotropic Gaussian
weight noise (docs/method.md 12). Every draw of the noise N(0, sigma^2) is the same for all models
and, up to its scale, for all sigmas: only the model differs.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merit.config import Experiment
from merit.config.branches import Model
from merit.errors import MeritError
from merit.eval.measuring.losses import LossEvaluator, open_evaluator
from merit.eval.measuring.models import displacement, planned_model
from merit.eval.measuring.scores import Row, columns, difference, sample_std
from merit.eval.results import Results, load_results
from merit.eval.studies.epochs import Epochs
from merit.io.artifacts import Artifacts
from merit.io.progress import Progress
from merit.method.diagnostics import flatness_auc


def measure(experiment: Experiment, paths: Artifacts, settings: Epochs) -> dict[str, Any]:
    """Table 1 with scores and flatness; every perturbed loss in `tables.epochs_perturbation`."""
    pairs = paired_models(experiment, settings)
    results = load_results(experiment, paths)
    evaluator = open_evaluator(experiment, paths, settings.num_examples)
    mean = evaluator.mean
    models = dict.fromkeys(model.id for _, *pair in pairs for model in pair)
    with evaluator.vectors(paths, [paths.model(model) for model in models]) as stored:
        base = evaluator.vector(paths, paths.base)
        vectors = {"base": base, **dict(zip(models, stored, strict=True))}
        losses = {name: evaluator.losses(theta) for name, theta in vectors.items()}
        increases = perturbed(evaluator, vectors, settings.sigmas, settings.num_draws)
        rms = {n: math.sqrt(theta.double().square().mean()) for n, theta in vectors.items()}
    aucs = {  # of every draw; the smaller, the flatter
        name: np.array([flatness_auc(settings.sigmas, draw.tolist()) for draw in values])
        for name, values in increases.items()
    }

    rows = []
    for epoch, joint, merged in pairs:
        far, near = (displacement(paths, model.id) for model in (joint, merged))
        gap = losses[merged.id] - losses[joint.id]
        flatter = aucs[joint.id] - aucs[merged.id]
        rows.append(
            {
                "epoch": epoch,
                "displacement_joint": far,
                "displacement_merged": near,
                "displacement_ratio": far / near if near else None,
                "train_loss_joint": mean(losses[joint.id]),
                "train_loss_merged": mean(losses[merged.id]),
                "train_loss_gap": mean(gap),
                "train_loss_gap_se": evaluator.standard_error(gap),
                **score_columns(results, joint, merged),
                "flatness_auc_joint": float(aucs[joint.id].mean()),
                "flatness_auc_merged": float(aucs[merged.id].mean()),
                "flatness_auc_gap": float(flatter.mean()),
                "flatness_auc_gap_std": sample_std(flatter),
            }
        )
    noise = perturbation_rows(["base", *models], settings.sigmas, increases, rms)
    return {
        "tables": {"table01_merge_readiness": rows, "epochs_perturbation": noise},
        "summary": {
            **summarise(rows, aucs["base"]),
            "joint": settings.joint,
            "merged": settings.merged,
            "seed": settings.seed,
            "loss_base": mean(losses["base"]),
            "weight_rms_base": rms["base"],
            "sigmas": settings.sigmas,
            "num_draws": settings.num_draws,
            **evaluator.sample,
            "num_questions": sum(results.num_questions.values()),
        },
        "models": [[joint.id, merged.id] for _, joint, merged in pairs],
    }


def paired_models(experiment: Experiment, settings: Epochs) -> list[tuple[float, Model, Model]]:
    """(epochs, joint model, merged model), ascending in epochs.

    Raises MeritError where the i-th methods of the two lists were not trained equally long.
    """
    where = f"experiments/{experiment.name}.yaml: key `studies.epochs"
    if len(settings.joint) != len(settings.merged):
        raise MeritError(
            f"{where}`: {len(settings.joint)} joint methods but {len(settings.merged)} merged "
            "ones; list them in pairs"
        )
    pairs = []
    for name, other in zip(settings.joint, settings.merged, strict=True):
        joint = planned_model(experiment, "epochs.joint", name, settings.seed)
        merged = planned_model(experiment, "epochs.merged", other, settings.seed, branches=2)
        epochs, others = (getattr(experiment.methods[m], "epochs", None) for m in (name, other))
        if epochs is None or epochs != others:
            raise MeritError(
                f"{where}.merged`: {other!r} trains for {others} epochs, {name!r} for {epochs}; "
                "pair methods of equal epochs"
            )
        pairs.append((float(epochs), joint, merged))
    return sorted(pairs, key=lambda pair: pair[0])


def perturbed(
    evaluator: LossEvaluator, vectors: dict[str, torch.Tensor], sigmas: list[float], num_draws: int
) -> dict[str, NDArray[np.float64]]:
    """L(theta + sigma z) - L(theta) of every model: float64 (num_draws, num_sigmas).

    Draw d is z = N(0, 1) from seed d, for all models and sigmas alike.
    """
    increases = {name: np.empty((num_draws, len(sigmas))) for name in vectors}
    with Progress("perturbation", len(vectors) * (1 + num_draws * len(sigmas))) as progress:
        for name, theta in vectors.items():
            increases[name][:] = -evaluator.loss(theta)
            progress.advance()
        for d in range(num_draws):
            noise = gaussian(len(next(iter(vectors.values()))), d)
            for name, theta in vectors.items():
                for s, sigma in enumerate(sigmas):
                    increases[name][d, s] += evaluator.loss(torch.add(theta, noise, alpha=sigma))
                    progress.advance()
    return increases


def gaussian(size: int, seed: int) -> torch.Tensor:
    """N(0, 1) float32 (size,), drawn on the CPU: the same on every machine."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def perturbation_rows(
    models: list[str],
    sigmas: list[float],
    increases: dict[str, NDArray[np.float64]],
    rms: dict[str, float],
) -> list[Row]:
    """A row per model and sigma: the loss increase, mean and spread over draws."""
    return [
        {
            "model": name,
            "sigma": sigma,
            "sigma_over_weight_rms": sigma / rms[name],
            "delta_loss": float(values.mean()),
            "delta_loss_std": sample_std(values),
            "num_draws": len(values),
        }
        for name in models
        for sigma, values in zip(sigmas, increases[name].T, strict=True)
    ]


def score_columns(results: Results, joint: Model, merged: Model) -> Row:
    """Benchmark averages of the two models; the gap with a paired bootstrap over questions."""
    averages, answers = [], []
    for model in (joint, merged):
        position = results.seeds[model.method].index(model.seed)
        averages.append(float(results.averages(model.method)[position]))
        mine = results.by_name(model.method, results.benchmarks)
        answers.append({name: values[position] for name, values in mine.items()})
    _, low, high = difference([answers[1]], [answers[0]])
    gap = columns("score_gap", (averages[1] - averages[0], low, high))
    return {"score_joint": averages[0], "score_merged": averages[1], **gap}


def summarise(rows: list[Row], base_aucs: NDArray[np.float64]) -> Row:
    """What the claims C8 (distance), C9 (loss, score) and C10 (flatness) are decided by.

    The columns of table 1 as lists, one entry per training length, and whether all agree in sign.
    """
    table: Row = {key: [row[key] for row in rows] for key in rows[0]}
    ratios = [ratio for ratio in table["displacement_ratio"] if ratio is not None]
    return table | {
        "ratio_grows": all(a < b for a, b in pairwise(ratios)) if len(ratios) > 1 else None,
        "merged_nearer": all(ratio > 1 for ratio in ratios),
        "merged_loss_higher": all(gap > 0 for gap in table["train_loss_gap"]),
        "merged_score_higher": all(gap > 0 for gap in table["score_gap"]),
        "merged_flatter": all(gap > 0 for gap in table["flatness_auc_gap"]),
        "flatness_auc_base": float(base_aucs.mean()),
    }
