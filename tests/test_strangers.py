"""Strangers' files are refused within 1 GiB and 20 s of a processor; none of their code runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import signal
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_readers import READERS, own, picture, tensors

from merit.config.settings import read_yaml
from merit.data.examples import read_examples
from merit.data.images import load_image
from merit.errors import MeritError
from merit.eval.answering.question_images import Picture
from merit.eval.questions import read_questions
from merit.io.artifacts import read_array, read_json
from merit.train.gguf import unpack
from merit.train.model import load_model, load_processor
from merit.train.tokenize import template_of
from tests import tiny_models

RUN = "code-was-run"


class Code:
    """What leaves a file in the working directory when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (RUN,)


def bounded(read: Callable[[], object]) -> str:
    """The one line that refuses; "value ..." where none does, "" where a bound was reached."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
            memory = used * resource.getpagesize() + 2**30
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
            signal.alarm(60)  # for what waits
            try:
                said = f"value {read()!r}"
            except MeritError as error:
                said = str(error)
            except BaseException as error:
                said = f"value {error!r}"
            os.write(send, said.encode()[:4000])
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


def header(content: Any, num_bytes: int = 0) -> bytes:
    """A safetensors file; its header's length is what is stated, if anything is."""
    text = json.dumps(content).encode()
    return (num_bytes or len(text)).to_bytes(8, "little") + text + bytes(16)


def tensor(*shape: int, at: tuple[int, int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": at}


def archive(num_bytes: int) -> bytes:
    """A zip whose member claims to hold so many bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.png", picture("PNG"))
        file.infolist()[0].file_size = num_bytes
    return buffer.getvalue()


def array(save: Callable[..., None], *values: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *values, **named)
    return buffer.getvalue()


def npy(descr: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {descr}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def aliases(row: str, first: str) -> bytes:
    """Nine levels, each of which names the one before ten times."""
    rows = [row.format(i, ",".join([f"*a{i - 1}"] * 10)) for i in range(1, 10)]
    return "".join([f"a0: &a0 {first}\n", *rows]).encode()


def png(side: int) -> bytes:
    content = bytearray(picture("PNG"))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def cell(path: Path) -> Any:
    return Picture(path, "7").open().size


PICKLE = pickle.dumps(Code())
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
DEEP = b"[" * 10**6
CSV = b"method,seed,benchmark,scores\nbase,,b,"
# what it is: the file's name, its bytes (or a length: all zero), its reader, what refuses it
FILES: dict[str, tuple[str, bytes | int, Callable[[Path], Any], str]] = {
    "pickle": ("x.safetensors", PICKLE, tensors, "not a safetensors file"),
    "pickle in npy": ("x.npy", PICKLE, read_array, "not a .npy array"),
    "objects": ("x.npy", array(np.save, np.array([Code()])), read_array, "not a .npy array"),
    "objects, npz": ("x.npy", array(np.savez, np.array([Code()])), read_array, "an archive"),
    "pickle as gguf": ("x.gguf", PICKLE, lambda p: unpack(p, p.parent, "k"), "GGUF"),
    "cut gguf": ("x.gguf", b"GGUF" + bytes(20), lambda p: unpack(p, p.parent, "k"), "cannot be"),
    "pickle as image": ("x.png", PICKLE, load_image, "no known format"),
    "long header": ("x.safetensors", header({}, 2**60), tensors, "header too large"),
    "huge shape": ("x.safetensors", header({"a": tensor(2**60, at=(0, 2**62))}), tensors, "overfl"),
    "overlap": (
        "x.safetensors",
        header({"a": tensor(2, at=(0, 8)), "b": tensor(2, at=(4, 12))}),
        tensors,
        "invalid offset",
    ),
    "long array": ("x.npy", npy(f"({2**60},)"), read_array, "greater"),
    "computed array": ("x.npy", npy("(9**9**9,)"), read_array, "malformed"),
    "aliases": ("x.yaml", aliases("a{0}: &a{0} [{1}]\n", "[x]"), read_yaml, "written out"),
    "merge keys": ("x.yaml", aliases("a{0}: &a{0}\n  <<: [{1}]\n", "{b: 1}"), read_yaml, "written"),
    "an alias in itself": ("x.yaml", b"a: &a [*a]\n", read_yaml, "written out"),
    "deep YAML": ("x.yaml", b"a: " + DEEP, read_yaml, "nested more than"),
    "deep list": ("x.yaml", b"a:\n" + b"- " * 10**5, read_yaml, "nested more than"),
    "YAML tag": ("x.yaml", f"a: !!python/object/apply:os.mkdir [{RUN}]".encode(), read_yaml, "tag"),
    "base 60": ("x.yaml", b"a: 1" + b":59" * 1000 + b".5", read_yaml, "not valid YAML"),
    "deep JSON": ("x.json", DEEP, read_json, "nested too deeply"),
    "deep example": ("x.jsonl", b'{"id": ' + DEEP, read_examples, "nested too deeply"),
    "deep record": ("x.json", b'[{"a": ' + DEEP, own, "nested too deeply"),
    "a line without end": ("x.jsonl", 2**34, own, "a line of"),
    "wide PNG": ("x.png", png(10**5), load_image, "decompression bomb"),
    "PostScript": ("x.eps", EPS, load_image, "a program"),
    "member": ("x.zip", archive(2**40), lambda p: load_image(p / "x.png"), "larger than"),
    "pickle in zip": ("x.zip", PICKLE, lambda p: load_image(p / "x.png"), "not a readable archive"),
    "cell": ("x.tsv", b"index\timage\n7\t[" + b"1," * 10**6 + b"]\n", cell, "no readable image"),
    "formula": ("x.tsv", b"index\timage\n7\t=1+1\n", cell, "no readable image"),
    "exponent": ("x.csv", CSV + b'"1e999999999 1"\n', read_questions, "line 2"),
    "not a number": ("x.csv", CSV + b'"nan 1"\n', read_questions, "line 2"),
    "digits": ("x.csv", CSV + b'"1/' + b"9" * 10**5 + b' 1"\n', read_questions, "line 2"),
    "elsewhere": ("dataset_dict.json", b'{"splits": ["../x"]}', lambda p: own(p.parent), "folder"),
    "data elsewhere": (
        "state.json",
        b'{"_data_files": [{"filename": "/etc/passwd"}]}',
        lambda p: own(p.parent),
        "does not lie in the folder itself",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name, content, read, said = FILES[kind]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given" / name
    path.parent.mkdir()
    path.write_bytes(b"" if isinstance(content, int) else content)
    if isinstance(content, int):
        os.truncate(path, content)
    found = bounded(lambda: read(path))
    assert said in found
    assert not found.startswith("value ")
    assert len(found.splitlines()) == 1
    assert len(found) < 1000
    assert [p.name for p in tmp_path.rglob("*")] == ["given", name]  # nothing was run or written


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_what_has_no_end_is_not_read(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    found = bounded(lambda: READERS[name][1](path))
    assert name in found
    assert not found.startswith("value ")
    assert len(found.splitlines()) == 1


def test_a_task_that_cannot_be_read_is_not_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    assert len(own(tmp_path)) == 2
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(MeritError, match=r"c\.jsonl"):
        own(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_models.llama(folder)
    return folder


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROW = (
    "{% set n = namespace(s='aa') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
)
CALL = f"{{{{ cycler.__init__.__globals__.os.mkdir('{RUN}') }}}}"
OWN_CODE = {
    "AutoTokenizer": ["code.X", "code.X"],
    "AutoConfig": "code.X",
    "AutoProcessor": "code.X",
}
TOKENIZER, PROCESSOR = "tokenizer_config.json", "processor_config.json"


def template(folder: Path) -> object:
    return template_of(load_processor(folder), "chat")


# the file that is changed, the values, who reads the folder, what refuses it
MODELS: dict[str, tuple[str, dict[str, Any], Callable[[Path], Any], str]] = {
    "loop": (TOKENIZER, {"chat_template": LOOP}, template, "it takes over"),
    "grow": (TOKENIZER, {"chat_template": GROW}, template, "chat template"),
    "call": (TOKENIZER, {"chat_template": CALL}, template, "unsafe"),
    "include": (TOKENIZER, {"chat_template": "{% include '/etc/passwd' %}"}, template, "no loader"),
    "code": (TOKENIZER, {"auto_map": OWN_CODE, "tokenizer_class": "X"}, load_processor, "custom"),
    "processor": (PROCESSOR, {"auto_map": OWN_CODE, "processor_class": "X"}, load_processor, "cus"),
    "layers": ("config.json", {"num_hidden_layers": 10**9}, load_model, "num_hidden_layers"),
    "width": ("config.json", {"hidden_size": 2**40}, load_model, "cannot be read"),
    "word": ("config.json", {"hidden_size": "wide"}, load_model, "cannot be read"),
    "activation": ("config.json", {"hidden_act": "__import__"}, load_model, "cannot be read"),
    "vocabulary": ("tokenizer.json", {"model": {"vocab": {"a": -1}}}, load_processor, "cannot be"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_s_folder_is_refused_in_one_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name, values, read, said = MODELS[kind]
    monkeypatch.setattr("merit.train.tokenize.SECONDS", 1)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / RUN)!r})\n")
    path = folder / name
    stated = read_json(path) if path.exists() else {}
    path.write_text(json.dumps(stated | values), encoding="utf-8")
    found = bounded(lambda: read(folder))
    assert said in found
    assert not found.startswith("value ")
    assert len(found.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
