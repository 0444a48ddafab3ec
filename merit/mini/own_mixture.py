"""`python -m merit.mini.own_mixture FOLDER`: a small mixture and a small model, as if yours.

For the tutorial docs/own-mixture.md: a few tasks of the mini world as JSONL files in chat form, and
the committed base of mini_vision as an ordinary Hugging Face folder. It needs a clone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from merit.config import MiniWorldData
from merit.data.examples import read_examples
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.io.artifacts import atomic_folder, atomic_write, read_json
from merit.mini.world.write_world import write_mini_world

BASE = Path(__file__).parents[2] / "experiments/bases/mini_vision"
NOT_COPIED = ("base.json",)  # in a base's folder, but not in an ordinary model's
ARCHIVE = "images.zip"


def write_own(folder: Path, num_tasks: int = 12, num_examples: int = 80) -> None:
    """Write `folder`/mixture and `folder`/model.

    `num_tasks` evenly spaced tasks, some `num_examples` examples of each, only messages and images.
    Raises MeritError if the base is not there.
    """
    if not BASE.is_dir():
        raise MeritError(f"{BASE}: not there; run it in a clone of the repository")
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(folder / "mixture") as mixture:
        world = Path(scratch)
        write_mini_world(
            MiniWorldData(
                source="mini_world",
                seed=0,
                size_spread=1e-6,
                num_examples=136 * num_examples,
                num_images=400,
                num_questions=1,
                num_validation_questions=1,
            ),
            world,
        )
        tasks = [entry["task"] for entry in read_json(world / "mixture/tasks.json")]
        for task in tasks[:: max(1, len(tasks) // num_tasks)][:num_tasks]:
            lines = [
                json.dumps({"messages": list(example.messages), "images": list(example.images)})
                for example in read_examples(task_file(world / "mixture", task))
            ]
            atomic_write(task_file(mixture, task), "\n".join(lines) + "\n")
        shutil.copyfile(world / "mixture" / ARCHIVE, mixture / ARCHIVE)
    with atomic_folder(folder / "model") as model:
        for path in sorted(BASE.iterdir()):
            if path.name not in NOT_COPIED:
                shutil.copyfile(path, model / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m merit.mini.own_mixture", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    try:
        write_own(folder)
    except MeritError as error:
        sys.exit(f"merit: error: {error}")
    print(f"{folder}/mixture: a file a task; {folder}/model: the base")


if __name__ == "__main__":
    main()
