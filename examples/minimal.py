"""MERIT on one page: gradients at the base, cosines, PCA, groups, branches, one average."""

import copy

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from merit.method.average import weighted_average
from merit.method.gradients import Stride, mean_gradient
from merit.method.partition import merit_groups
from merit.method.similarity import cosine_matrix, pca

torch.manual_seed(0)  # yours instead of a random model: AutoModelForCausalLM.from_pretrained(...)
config = Qwen2Config(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2)
base = Qwen2ForCausalLM(config)
tasks = {}
for i in range(8):  # yours: a DataLoader per task; labels are -100 for tokens without loss
    batches = torch.randint(16 * (i % 4), 16 * (i % 4) + 16, (8, 4, 12))
    tasks[f"task{i}"] = [{"input_ids": b, "labels": b} for b in batches]
samples = np.array([sum(len(b["labels"]) for b in batches) for batches in tasks.values()])
tokens = np.array([sum(b["labels"].numel() for b in batches) for batches in tasks.values()])

# 1. The mean gradient of every task at the base, every fifth entry of it.
parameters, rows = dict(base.named_parameters()), []
for batches in tasks.values():
    losses = [lambda b=b: (base(**b).loss, b["labels"][:, 1:].numel()) for b in batches]
    rows.append(mean_gradient(losses, parameters, Stride(5)).numpy())
# 2. PCA of the gradients' cosine matrix.
embedding = pca(cosine_matrix(np.stack(rows)), num_axes=2).embedding
# 3. One cut per axis, at the sample-weighted median: 2^2 groups of about equal size.
groups, _ = merit_groups(embedding, samples, list(tasks), num_axes=2)
# 4. One branch per group, trained without communication.
branches = [copy.deepcopy(base) for _ in range(4)]
for group, branch in enumerate(branches):
    optimizer = torch.optim.AdamW(branch.parameters(), lr=1e-3)
    for b in (b for task, g in zip(tasks, groups, strict=True) if g == group for b in tasks[task]):
        optimizer.zero_grad()
        branch(**b).loss.backward()
        optimizer.step()
# 5. One average of the branches, weighted by tokens.
weights = [float(tokens[groups == group].sum() / tokens.sum()) for group in range(4)]
states, merged = [branch.state_dict() for branch in branches], copy.deepcopy(base)
merged.load_state_dict({n: weighted_average([s[n] for s in states], weights) for n in states[0]})

print("groups:", dict(zip(tasks, groups.tolist(), strict=True)))
for name, model in {"base": base, "merged": merged}.items():
    mean = np.mean([model(**b).loss.item() for batches in tasks.values() for b in batches])
    print(f"loss of {name}: {mean:.3f}")
