"""The same questions through vLLM (`evaluation.generator: vllm`), in a process of its own.

vLLM needs another torch than merit: `evaluation.vllm_python` names the Python of an environment
that has it. The process gets all questions one after the other, each as soon as there is room, and
schedules them itself; it is given the text in the chat template and the images. Its kernels sum in
another order than transformers' do, so all models of an experiment must be answered by the same
generator.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from merit.errors import MeritError
from merit.eval.answering import vllm_process
from merit.eval.answering.batches import Prompt, chat_text, image_size


class Vllm:
    """vLLM's model of a folder, ready for `prompts`; `dtype` "stored" is config.json's.

    Raises MeritError if `python` (None: this one) cannot be run or lacks vLLM, or if the prompts
    have several ranges of pixels.
    """

    def __init__(
        self, folder: Path, prompts: Sequence[Prompt], dtype: str, python: str | None
    ) -> None:
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
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - _end closes it
        # modules of this project, and of its environment, are no concern of the other one
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, vllm_process.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment | {"PYTHONSAFEPATH": "1"},
            )
        except OSError as error:
            self._stderr.close()
            raise MeritError(
                f"key `evaluation.vllm_python`: {python}: {(error.strerror or '').lower()}; name "
                "the Python of an environment with vLLM, such as /opt/vllm/bin/python"
            ) from None
        weakref.finalize(self, _end, self._process, self._stderr)
        with contextlib.suppress(BrokenPipeError):  # what it has said is read next
            self._put({"model": str(folder), "seed": 0, "dtype": held, **options})
        self._get()

    def answers(self, processor: Any, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """(position, greedy answer) as they are finished; an image is opened when it is sent.

        Raises MeritError for an image that cannot be read, or if the process ends.
        """
        failures: list[MeritError] = []

        def send() -> None:
            with contextlib.suppress(BrokenPipeError):
                try:
                    for prompt in prompts:
                        opened = [picture.open() for picture in prompt.images]
                        images = [(image.size, image.tobytes()) for image in opened]
                        self._put((chat_text(processor, prompt), images, prompt.max_new_tokens))
                except MeritError as error:
                    failures.append(error)
                self._put(None)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        reply: Any = ()
        try:
            while (reply := self._get()) is not None:
                yield reply[0], reply[1]
        finally:
            if reply is not None:  # nobody waits for the answers any more
                self._process.kill()
            sender.join()
        if failures:
            raise failures[0]

    def _put(self, value: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(value, self._process.stdin)
        self._process.stdin.flush()

    def _get(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.endswith(b"\n"):
            return json.loads(line)
        status = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").split("\n")
        last = next((text for text in reversed(said) if text.strip()), "nothing")
        advice = ""
        if "No module named 'vllm'" in last:
            advice = "; name the Python of an environment with vLLM, or set `transformers`"
        raise MeritError(
            f"key `evaluation.generator`: vllm ended with status {status}, and last said: "
            f"{last.strip()}{advice}"
        )


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
    """Let the process go, so that the next model has its GPU."""
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()  # type: ignore[union-attr]
    stderr.close()
