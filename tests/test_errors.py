"""A user's mistake at the command line: one message, status 2, no traceback, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merit.config import Runtime
from merit.errors import MeritError, message_of
from merit.run.cli import main
from merit.train.model import load_model, placement
from tests import tiny_models

ROOT = Path(__file__).parent.parent
PARAMS = "params.yaml"
YAML = "experiments/mini_vision.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings only, as in a fresh clone before any stage has run."""
    shutil.copyfile(ROOT / PARAMS, tmp_path / PARAMS)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refuse(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    """Run a command that must be refused; returns the lines of its message."""

    def run(arguments: str) -> list[str]:
        before = files(folder)
        with pytest.raises(SystemExit) as ended:
            main(arguments.split())
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        prefix, _, message = said.err.partition("merit: error: ")
        assert prefix == ""
        assert files(folder) == before
        return message.splitlines()

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "old", "new", "command", "found"),
    [
        (PARAMS, "workers:", "wokers:", "status", (PARAMS, "`wokers`", "`workers`")),
        (PARAMS, "workers: 2", "workers: two", "status", (PARAMS, "`workers`", "'two'")),
        (
            YAML, "max_new_tokens:", "max_new_token:", "run mini_vision",
            (YAML, "`evaluation.max_new_token`", "`max_new_tokens`"),
        ),
        ("", "", "", "run mini_visoin", ("experiments/mini_visoin.yaml", "`mini_vision`")),
        ("", "", "", "run mini_vision trian", ("'trian'", "`train`")),
        ("", "", "", "run --rehearse", ("NAME --rehearse",)),
        ("", "", "", "ui", ("sqlite:///mlflow.db",)),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(
    folder: Path,
    refuse: Callable[[str], list[str]],
    file: str,
    old: str,
    new: str,
    command: str,
    found: tuple[str, ...],
) -> None:
    if file:
        replace(folder / file, old, new)
    (line,) = refuse(command)
    assert [part for part in found if part not in line] == []


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (PermissionError(13, "Permission denied", "out/x"), 2, "out/x: permission denied; change"),
        (OSError(30, "Read-only file system", "out"), 2, "out: read-only file system; change its"),
        (OSError(28, "No space left on device", "out"), 2, "out: no space left on device; free"),
        (ModuleNotFoundError("No mlflow", name="mlflow.x"), 2, "mlflow.x is missing: pip install"),
        (MemoryError(), 2, "out of memory (of this machine)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, "out of memory (CUDA out of"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus"), 2, "/dev/shm"),
        (
            RuntimeError("The NVIDIA driver on your system is too old (found 11040). Please"),
            2,
            "is too old (found 11040); look at `nvidia-smi`",
        ),
        (
            RuntimeError("CUDA error: device(s) is/are busy or unavailable\nX"),
            2,
            "unavailable; look",
        ),
        (
            KeyError("lm_head.weight"),
            1,
            "KeyError: 'lm_head.weight'\nmerit: this is a bug of merit",
        ),
        (FileNotFoundError(2, "No such file", "x"), 1, "Traceback (most recent call last)"),
    ],
)
def test_errors_of_libraries_and_of_the_system(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    said: str,
) -> None:
    """What a machine lacks is one line; a bug keeps its traceback, and says so."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("merit.run.cli._dispatch", fail)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    found = capsys.readouterr().err
    assert ended.value.code == status
    assert said in found
    assert (len(found.splitlines()) == 1) == (status == 2)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), r"out of memory.*gpus_per_branch"),
        (ImportError("FlashAttention2 has been toggled on"), r"`model\.attention`: 'auto': Flash"),
        (OSError("no file\nnamed"), r"the model cannot be read \(no file\)"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    tiny_models.llama(tmp_path)
    monkeypatch.setattr("transformers.LlamaForCausalLM.from_pretrained", fail)
    with pytest.raises(MeritError, match=said) as caught:
        load_model(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_red_on_a_terminal_that_does_not_refuse_colours(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for no_colour, prefix in (("", "\033[1;31mmerit: error:\033[0m "), ("1", "merit: error: ")):
        monkeypatch.setenv("NO_COLOR", no_colour)
        with pytest.raises(SystemExit):
            main(["run", "nothing"])
        assert capsys.readouterr().err.startswith(prefix)


def test_gpus_that_torch_cannot_use_do_not_mean_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("No CUDA GPUs are available")

    monkeypatch.setattr("torch.cuda.init", refuse)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(RuntimeError, match="No CUDA GPUs") as raised:
        placement(Runtime())
    assert "look at `nvidia-smi`" in str(message_of(raised.value))
    assert placement(Runtime(device="cpu")) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert placement(Runtime()) is None
