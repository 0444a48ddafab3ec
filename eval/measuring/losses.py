"""The loss of any trained parameters on one fixed sample of the mixture.

A model is a flat float32 vector theta (P,): its trained tensors one behind the other, in the
order of `LossEvaluator.parameters`. The base is loaded once; every other model is only its vector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merit.config import Experiment
from merit.errors import MeritError
from merit.io.adapters import CONFIG
from merit.io.artifacts import Artifacts
from merit.io.checkpoints import Checkpoint
from merit.io.progress import Progress
from merit.io.rows import scratch_rows
from merit.merge.sources import open_branch
from merit.method.diagnostics import barrier
from merit.method.hessian import hvp_exact
from merit.train.dataset import IGNORED, TokenizedDataset
from merit.train.images import open_mixture
from merit.train.loss import forward_loss
from merit.train.model import load_model, set_trainable, stored_tensors, use_one_thread

SEED = 0  # of the sample: every study looks at the same examples, a smaller one at the first
BATCH_SIZE = 16
Losses = NDArray[np.float64]  # (num_batches,)


@dataclass(frozen=True)
class LossEvaluator:
    """Measures L(theta) = mean next-token loss per supervised token over the sample.

    `losses` gives every batch's own loss, so that differences between models are paired;
    `mean` and `standard_error` reduce them (or any linear combination of them).
    """

    model: Any
    parameters: dict[str, torch.Tensor]  # what is trained, under the checkpoint's names
    data: TokenizedDataset
    batches: list[NDArray[np.int64]]  # indices into `data`
    num_tokens: NDArray[np.int64]  # (num_batches,): supervised tokens

    @property
    def num_examples(self) -> int:
        return sum(len(indices) for indices in self.batches)

    @property
    def sample(self) -> dict[str, int]:
        """The sample's size, as every result states it."""
        return {"num_examples": self.num_examples, "num_tokens": int(self.num_tokens.sum())}

    def read(self, path: Path) -> torch.Tensor:
        """theta of a checkpoint (folder or file), which may hold other tensors besides.

        Raises MeritError where a trained tensor is missing or has another shape.
        """
        checkpoint = Checkpoint(path)
        known = set(checkpoint.names)
        for name, parameter in self.parameters.items():
            found = checkpoint.shape(name) if name in known else None
            if found != tuple(parameter.shape):
                raise MeritError(
                    f"{checkpoint.path}: tensor {name!r}: found shape {found}, the base has "
                    f"{tuple(parameter.shape)}; train or merge it again from this base"
                )
        return flatten(checkpoint.read(name) for name in self.parameters)

    def vector(self, paths: Artifacts, folder: Path) -> torch.Tensor:
        """theta (P,) of the base, a model or a branch; adapters are added to the base."""
        if not (folder / CONFIG).is_file():
            return self.read(folder)
        base = Checkpoint(paths.base)
        adapter = open_branch(folder, base, paths.base)
        return flatten((adapter if adapter.has(n) else base).read(n) for n in self.parameters)

    @contextlib.contextmanager
    def vectors(self, paths: Artifacts, folders: Sequence[Path]) -> Iterator[list[torch.Tensor]]:
        """theta of every folder, (P,) each, memory-mapped: one at a time is in memory."""
        size = sum(parameter.numel() for parameter in self.parameters.values())
        with scratch_rows(paths.folder, len(folders), size) as rows:
            stored = torch.from_numpy(rows)
            for row, folder in zip(stored, folders, strict=True):
                row.copy_(self.vector(paths, folder))
            yield list(stored)

    @torch.no_grad()
    def place(self, theta: torch.Tensor) -> None:
        """Make theta the model's current parameters."""
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        for parameter, part in zip(self.parameters.values(), theta.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))

    def losses(self, theta: torch.Tensor) -> Losses:
        """Mean loss of every batch at theta: float64 (num_batches,), measured in float32."""
        self.place(theta)
        with torch.inference_mode():
            return np.array([self._loss(indices).item() for indices in self.batches])

    def mean(self, losses: Losses) -> float:
        """sum_b m_b L_b / sum_b m_b, with m_b the batch's supervised tokens."""
        return float(self.num_tokens @ losses / self.num_tokens.sum())

    def standard_error(self, losses: Losses) -> float:
        """Of `mean`, over batches of the random sample: sqrt(B/(B-1) sum_b p_b^2 (L_b - L)^2).

        p_b = m_b / sum m: the ratio estimator's error. 0 for a single batch.
        """
        count = len(losses)
        if count < 2:
            return 0.0
        shares = self.num_tokens / self.num_tokens.sum()
        deviations = shares * (losses - self.mean(losses))
        return float(np.sqrt(count / (count - 1) * deviations @ deviations))

    def loss(self, theta: torch.Tensor) -> float:
        return self.mean(self.losses(theta))

    def hessian_product(self, theta: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """H v (P,) at theta, H the Hessian of L over the whole sample, batch by batch.

        By double backward, so the evaluator must have been opened with `curvature=True`.
        """
        self.place(theta)
        parameters = list(self.parameters.values())
        total = torch.zeros_like(v)
        for indices, count in zip(self.batches, self.num_tokens.tolist(), strict=True):
            product = hvp_exact(lambda part=indices: self._loss(part), parameters, v)  # type: ignore[misc]
            total.add_(product, alpha=count)
        return total / int(self.num_tokens.sum())

    def _loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        return forward_loss(self.model, self.data.batch(indices), None)


def open_evaluator(
    experiment: Experiment, paths: Artifacts, num_examples: int, curvature: bool = False
) -> LossEvaluator:
    """An evaluator over `num_examples` examples of the mixture (all of them where it has fewer).

    `curvature` switches to the attention that can be differentiated twice.
    """
    use_one_thread()
    model = load_model(paths.base, experiment.model)
    if curvature:
        model.set_attn_implementation("eager")
    data = open_mixture(paths, experiment.encoding)
    return make_evaluator(model, experiment.training.trainable, data, num_examples)


def make_evaluator(
    model: Any, trainable: Iterable[str], data: TokenizedDataset, num_examples: int
) -> LossEvaluator:
    """An evaluator over a seeded sample of `data`; the model's parameters are changed in place.

    In float32 whatever the base's type: bfloat16 would round most of what was learnt away.
    """
    model.float()
    parameters = stored_tensors(model, set_trainable(model, trainable))
    sample = np.random.default_rng(SEED).permutation(len(data))[:num_examples]
    batches = [sample[i : i + BATCH_SIZE] for i in range(0, len(sample), BATCH_SIZE)]
    counts = [int((data.batch(b)["labels"][:, 1:] != IGNORED).sum()) for b in batches]
    return LossEvaluator(model, parameters, data, batches, np.array(counts, dtype=np.int64))


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The tensors' entries one behind the other: float32 (P,)."""
    return torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors])


def walk(
    evaluator: LossEvaluator,
    points: Mapping[str, torch.Tensor],
    pairs: Sequence[tuple[str, str]],
    alphas: NDArray[np.float64],
    label: str,
) -> tuple[dict[str, Losses], dict[tuple[str, str], list[Losses]]]:
    """Losses of every point, and at (1 - alpha) a + alpha b of every pair; each end once.

    Raises MeritError where a loss is not finite.
    """
    with Progress(label, len(points) + len(pairs) * (len(alphas) - 2)) as progress:

        def losses(theta: torch.Tensor, what: str) -> Losses:
            progress.advance()
            found = evaluator.losses(theta)
            if not np.isfinite(found).all():
                raise MeritError(f"the loss of {what} on the mixture is not finite")
            return found

        known = {name: losses(theta, name) for name, theta in points.items()}
        curves = {}
        for a, b in pairs:
            steps = (torch.lerp(points[a], points[b], float(x)) for x in alphas[1:-1])
            between = [losses(theta, f"{a} to {b}") for theta in steps]
            curves[a, b] = [known[a], *between, known[b]]
    return known, curves


def barrier_columns(alphas: NDArray[np.float64], curve: NDArray[np.float64]) -> dict[str, float]:
    """A path's barrier, and as a share of the mean loss at its ends."""
    # exactly zero at the ends; a barrier of 1e-17 would be rounding
    height = max(0.0, barrier(alphas, curve))
    return {"barrier": height, "barrier_share": height / float(curve[[0, -1]].mean())}
