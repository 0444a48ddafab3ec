"""Batched generation against VLMEvalKit's own loop: same model, same questions, in one run.

    python -m benchmarks.generation            # after `dvc repro base@mini_vision`

The kit's loop is `vlmeval.inference.infer_data`, which asks one question at a time. The model in
it is written to the kit's interface (its own Qwen2.5-VL class insists on a GPU and flash attention)
and does what that class does: processor, greedy `generate`, decode. Both read every question's
image again and run on one thread. Scores are the kit's. Writes reports/benchmarks/generation.json
and .md.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from merit.config import Evaluation, load_experiment
from merit.errors import MeritError
from merit.io.artifacts import REPORTS_DIR, Artifacts, atomic_write, write_json
from merit.run.cli import quiet

EXPERIMENT = "mini_vision"
TARGET = 5.0  # times as fast as the kit's loop, with identical scores


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--questions", type=int, default=20, help="of every benchmark")
    options.add_argument("--rounds", type=int, default=3, help="interleaved; the median counts")
    given = options.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="merit-benchmark-") as folder:
        os.environ["LMUData"] = folder  # noqa: SIM112 - the name is VLMEvalKit's
        os.environ["TQDM_DISABLE"] = "1"
        result = measure(Path(folder), given.questions, given.rounds)
    out = REPORTS_DIR / "benchmarks"
    write_json(out / "generation.json", result)
    atomic_write(out / "generation.md", page(result))
    print(page(result))


def measure(folder: Path, num_questions: int, num_rounds: int) -> dict[str, Any]:
    """Seconds of both loops, round by round, and whether their answers and scores are the same."""
    from merit.eval import datasets
    from merit.eval.answering.answers import Questions, generate_answers, question_files
    from merit.train.model import load_model, load_processor, use_one_thread

    paths = Artifacts(EXPERIMENT)
    settings = load_experiment(EXPERIMENT).evaluation.model_copy(update={"cache_images": False})
    if not (paths.base / "model.safetensors").is_file():
        raise MeritError(f"{paths.base}: no base; run `dvc repro base@{EXPERIMENT}` first")
    use_one_thread()
    model, processor = load_model(paths.base), load_processor(paths.base)
    built: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for name, path in question_files(paths, settings).items():
        files[name] = folder / f"few_{path.name}"
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        table.head(num_questions).to_csv(files[name], sep="\t", index=False)
        built[name] = datasets.build(name, files[name])
    prompts = {name: datasets.prompts(dataset) for name, dataset in built.items()}

    def ours() -> dict[str, dict[str, str]]:
        return generate_answers(model, processor, Questions(settings, files, prompts))[0]

    loop = KitLoop(model, processor, settings, built, folder)
    seconds: dict[str, list[float]] = {"kit": [], "ours": []}
    of_cpu: dict[str, list[float]] = {"kit": [], "ours": []}
    answers: dict[str, Any] = {}
    loop.answer(1), ours()  # what is loaded on first use
    for _ in range(num_rounds):
        for name, run in (("kit", loop.answer), ("ours", ours)):
            began, cpu = time.perf_counter(), time.process_time()
            answers[name] = run()
            seconds[name].append(time.perf_counter() - began)
            of_cpu[name].append(time.process_time() - cpu)
    scores = {
        who: {name: datasets.score(name, built[name], given[name])[0] for name in built}
        for who, given in answers.items()
    }
    pairs = [(answers["kit"][n][i], answers["ours"][n][i]) for n in built for i in prompts[n]]
    ratios = [kit / our for kit, our in zip(seconds["kit"], seconds["ours"], strict=True)]
    cpu_ratios = [kit / our for kit, our in zip(of_cpu["kit"], of_cpu["ours"], strict=True)]
    return {
        "model": f"base of {EXPERIMENT}, {sum(p.numel() for p in model.parameters())} parameters",
        "device": f"{platform.processor() or platform.machine()}, one thread of {os.cpu_count()}",
        "num_questions": len(pairs),
        "batch_size": settings.batch_size,
        "seconds": seconds,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_seconds": of_cpu,
        "cpu_ratio": statistics.median(cpu_ratios),
        "target": TARGET,
        "same_answers": sum(a == b for a, b in pairs),
        "same_scores": scores["kit"] == scores["ours"],
        "scores": scores,
    }


class KitLoop:
    """VLMEvalKit's inference over some benchmarks, with one model in its interface."""

    def __init__(
        self, model: Any, processor: Any, settings: Evaluation, built: Any, folder: Path
    ) -> None:
        from vlmeval.dataset.image_base import ImageBaseDataset

        self.datasets, self.folder = built, folder
        self.model = _kit_model(model, processor, settings.max_new_tokens)
        for dataset in built.values():
            # the kit's way to images: written as files once, here before the clock runs
            dataset.dump_image = functools.partial(ImageBaseDataset.dump_image, dataset)
            for i in range(len(dataset)):
                dataset.build_prompt(i)

    def answer(self, num_benchmarks: int | None = None) -> dict[str, dict[str, str]]:
        from vlmeval.inference import infer_data
        from vlmeval.smp import load

        found = {}
        for name, dataset in list(self.datasets.items())[:num_benchmarks]:
            with tempfile.TemporaryDirectory(dir=self.folder) as work:
                out = f"{work}/answers.pkl"
                infer_data(self.model, "tiny", work, dataset, out)
                found[name] = {str(index): text for index, text in load(out).items()}
        return found


def _kit_model(model: Any, processor: Any, max_new_tokens: int) -> Any:
    import torch
    from PIL import Image
    from vlmeval.vlm.base import BaseModel

    class OneByOne(BaseModel):  # type: ignore[misc]
        INTERLEAVE = True

        def generate_inner(self, message: Any, dataset: str | None = None) -> str:
            content = [
                {"type": "text", "text": m["value"]} if m["type"] == "text" else {"type": "image"}
                for m in message
            ]
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            images = [
                Image.open(m["value"]).convert("RGB") for m in message if m["type"] == "image"
            ]
            inputs = processor(text=[text], images=images, return_tensors="pt")
            with torch.inference_mode():
                output = model.generate(
                    **inputs,
                    do_sample=False,
                    repetition_penalty=1.0,
                    max_new_tokens=max_new_tokens,
                )
            new = output[:, inputs["input_ids"].shape[1] :]
            return str(processor.batch_decode(new, skip_special_tokens=True)[0]).strip()

    return OneByOne()


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    kit, ours = (statistics.median(result["seconds"][who]) for who in ("kit", "ours"))
    low, high = min(result["ratios"]), max(result["ratios"])
    same = "identical" if result["same_scores"] else "DIFFERENT"
    met = "met" if result["ratio"] >= TARGET and result["same_scores"] else "missed"
    n = result["num_questions"]
    return f"""# Generation

{result["model"]}; {n} questions with an image each; {result["device"]}; median of \
{len(result["ratios"])} interleaved rounds.

| | seconds | questions a second |
|---|---:|---:|
| VLMEvalKit's loop, one by one | {kit:.1f} | {n / kit:.1f} |
| batches of up to {result["batch_size"]} | {ours:.1f} | {n / ours:.1f} |

Ratio {result["ratio"]:.1f} ({low:.1f} to {high:.1f}), of CPU time {result["cpu_ratio"]:.1f}; \
target {TARGET:.0f}: {met}. Scores {same}; {result["same_answers"]} of {n} answers the same.
"""


if __name__ == "__main__":
    main()
