"""`python -m merit.mini.own_mixture FOLDER`: a small mixture and a small model, as if yours.

For the tutorial docs/own-mixture.md: a few tasks of the mini text world as JSONL files in chat
form, and that world's base as an ordinary Hugging Face folder. It needs the stages `data` and
`base` of mini_text.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from merit.data.examples import read_examples
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, atomic_write, read_json

OURS = ("base.json", "records.jsonl")  # in a base's folder, but not in an ordinary model's


def write_own(source: Artifacts, folder: Path, num_tasks: int = 12, num_examples: int = 80) -> None:
    """Write `folder`/mixture and `folder`/model.

    `num_tasks` evenly spaced tasks, the first examples of each, only their messages. Raises
    MeritError if the world or its base is missing.
    """
    listed = source.mixture / "tasks.json"
    for path, stage in ((listed, "data"), (source.base / "config.json", "base")):
        if not path.is_file():
            raise MeritError(
                f"{path}: not made yet; run `merit run {source.experiment} {stage}` first"
            )
    tasks = [entry["task"] for entry in read_json(listed)]
    with atomic_folder(folder / "mixture") as mixture:
        for task in tasks[:: max(1, len(tasks) // num_tasks)][:num_tasks]:
            examples = read_examples(task_file(source.mixture, task))[:num_examples]
            lines = [json.dumps({"messages": list(example.messages)}) for example in examples]
            atomic_write(task_file(mixture, task), "\n".join(lines) + "\n")
    with atomic_folder(folder / "model") as model:
        for path in sorted(source.base.iterdir()):
            if path.name not in OURS:
                shutil.copyfile(path, model / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m merit.mini.own_mixture", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    try:
        write_own(Artifacts("mini_text"), folder)
    except MeritError as error:
        sys.exit(f"merit: error: {error}")
    print(f"{folder}/mixture: a file a task; {folder}/model: the base")


if __name__ == "__main__":
    main()
