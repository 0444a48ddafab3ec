"""Streaming merges: equal to whole tensors, checked, measured, and small in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from merit.errors import MeritError
from merit.io.checkpoint_files import INDEX, SINGLE
from merit.io.checkpoint_writer import header
from merit.io.checkpoints import Checkpoint, TensorInfo, save_tensors
from merit.merge import pieces, rules
from merit.merge.write import write_merged
from merit.method import mergers
from merit.method.average import interpolate, weighted_average
from merit.method.mergers.ties import ties
from merit.run.cli import main
from merit.train.branch import displacement

ROOT = Path(__file__).parent.parent
SHAPES = {"e": (7, 5), "m": (6, 8), "t": (3, 2, 4), "v": (9,), "x": ()}


def random_tensors(seed: int, base: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return noise if base is None else {n: base[n] + 0.1 * noise[n] for n in noise}


def saved(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Checkpoint:
    """A folder with the tensors, and a config.json if anything is to stand there."""
    folder.mkdir(parents=True)
    save_tensors(tensors, folder / SINGLE)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder)


# --- one pass ------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    piece=st.sampled_from([1, 5, 12, 2**18]),
    threads=st.sampled_from([1, 3]),
    method=st.sampled_from(["average", "shrunk", *mergers.merger_keys()]),
)
def test_pieces_and_threads_change_no_bit(
    seed: int, piece: int, threads: int, method: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The reference: the same formula on whole tensors, one file written by the library."""
    folder = tmp_path_factory.mktemp("merge")
    base = random_tensors(seed)
    branches = [random_tensors(seed + k, base) for k in (1, 2, 3)]
    del branches[0]["x"]  # stays the base's there
    theta0 = saved(folder / "base", base)
    parts = [saved(folder / str(k), branch) for k, branch in enumerate(branches)]
    weights = [0.5, 0.3, 0.2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", piece)
        if method == "average":
            rule = rules.average(sorted(base), parts, weights)
        elif method == "shrunk":
            rule = rules.shrunk(parts[1], 0.3)
        else:
            rule = rules.post_hoc(method, theta0, sorted(base), parts, scale=0.7, threads=threads)
        (folder / "out").mkdir()
        measured = write_merged(folder / "out", theta0, rule, threads=threads)
    whole = {
        name: reference(method, base[name], [b.get(name, base[name]) for b in branches], limits)
        for limits in [thresholds(base, branches)]
        for name in base
    }
    save_tensors(whole, folder / "whole.safetensors")
    assert (folder / "out" / SINGLE).read_bytes() == (folder / "whole.safetensors").read_bytes()
    expected = displacement((whole[name], base[name]) for name in sorted(base))
    assert measured["displacement"] == pytest.approx(expected)
    # in one piece a tensor, the same sum in the same order
    assert measured["displacement"] == expected or piece < 2**18
    assert 0 < measured["rounding_error"] < 1e-5  # float32


def thresholds(base: Mapping[str, Any], branches: Sequence[Mapping[str, Any]]) -> list[float]:
    """A fifth of all entries of a branch reach its threshold."""
    found = []
    for branch in branches:
        moves = [(branch.get(n, t) - t).abs().flatten() for n, t in base.items()]
        ordered = torch.cat(moves).sort(descending=True).values
        found.append(float(ordered[int(0.2 * len(ordered)) - 1]))
    return found


def reference(
    method: str, theta0: torch.Tensor, parts: Sequence[torch.Tensor], limits: Sequence[float]
) -> torch.Tensor:
    if method == "average":
        return weighted_average(parts, [0.5, 0.3, 0.2])
    if method == "shrunk":
        return interpolate(theta0, parts[1], 0.3)
    if method == "ties":
        return ties(theta0, parts, scale=0.7, thresholds=limits)
    return mergers.load_merger(method).merge(theta0, parts, scale=0.7)


def test_the_rounding_of_a_narrow_output_by_hand(tmp_path: Path) -> None:
    """Beside 1, bfloat16 knows steps of 1/128 upwards: 3/256 goes up to 2/128, 1/512 is lost."""
    base = saved(tmp_path / "base", {"w": torch.ones(2, dtype=torch.bfloat16)})
    step = torch.tensor([3 / 256, 1 / 512])
    branches = [saved(tmp_path / str(k), {"w": 1 + k * step}) for k in (0, 2)]  # float32
    rule = rules.average(["w"], branches, [0.5, 0.5])
    found = {}
    for dtype in (None, torch.float32):
        (tmp_path / str(dtype)).mkdir()
        found[dtype] = write_merged(tmp_path / str(dtype), base, rule, dtype=dtype)
    assert Checkpoint(tmp_path / "None").read("w").tolist() == [1 + 1 / 64, 1.0]
    assert Checkpoint(tmp_path / "None").info("w").dtype == torch.bfloat16
    assert Checkpoint(tmp_path / "torch.float32").read("w").tolist() == (1 + step).tolist()
    assert found[None]["displacement"] == 1 / 64
    lost = (1 / 256) ** 2 + (1 / 512) ** 2
    wanted = (3 / 256) ** 2 + (1 / 512) ** 2
    assert found[None]["rounding_error"] == pytest.approx((lost / wanted) ** 0.5)
    assert found[torch.float32] == {
        "displacement": pytest.approx(wanted**0.5),
        "rounding_error": 0.0,
    }


def test_half_precision_is_averaged_in_float32(tmp_path: Path) -> None:
    """As near to the exact average as bfloat16 allows; equal branches are their own average."""
    noise = {name: t.bfloat16() for name, t in random_tensors(0).items()}
    base = saved(tmp_path / "base", noise)
    parts = [
        saved(tmp_path / str(k), {n: t.bfloat16() for n, t in random_tensors(k, noise).items()})
        for k in (1, 2, 3)
    ]
    weights = [0.5, 0.3, 0.2]
    found = {}
    for name, sources in (("same", [parts[0]] * 3), ("other", parts)):
        (tmp_path / name).mkdir()
        rule = rules.average(base.names, sources, weights)
        found[name] = write_merged(tmp_path / name, base, rule)
    assert (tmp_path / "same" / SINGLE).read_bytes() == (tmp_path / "1" / SINGLE).read_bytes()
    assert found["same"]["rounding_error"] < 1e-5
    lost = wanted = 0.0
    for name, theta0 in base.items():
        exact = weighted_average([part.read(name) for part in parts], weights, torch.float64)
        cast = Checkpoint(tmp_path / "other").read(name)
        assert torch.equal(cast, exact.bfloat16())
        lost += float((cast.double() - exact).square().sum())
        wanted += float((exact - theta0.double()).square().sum())
    assert found["other"]["rounding_error"] == pytest.approx((lost / wanted) ** 0.5, rel=1e-5)


def test_integers_stay_and_must_agree(tmp_path: Path) -> None:
    tensors = {"n": torch.tensor([1, 2]), "o": torch.tensor(3), "w": torch.ones(2)}
    base = saved(tmp_path / "base", tensors)
    same = saved(tmp_path / "same", tensors | {"w": torch.zeros(2)})
    other = saved(tmp_path / "other", tensors | {"o": torch.tensor(4)})
    for name in ("agree", "differ"):
        (tmp_path / name).mkdir()
    rule = rules.average(base.names, [same, same], [0.5, 0.5])
    write_merged(tmp_path / "agree", base, rule, dtype=torch.bfloat16)
    assert {n: t.tolist() for n, t in load_file(tmp_path / "agree" / SINGLE).items()} == {
        **{"n": [1, 2], "o": 3, "w": [0.0, 0.0]}
    }
    rule = rules.average(base.names, [same, other], [0.5, 0.5])
    with pytest.raises(MeritError, match=r"other/.*: tensor 'o' \(torch.int64\) differs from"):
        write_merged(tmp_path / "differ", base, rule)


@pytest.mark.parametrize(
    ("base", "branch", "dtype", "message"),
    [
        (1.0, float("nan"), None, "neither is that of .*branch/model.safetensors; take an earlier"),
        (float("inf"), 1.0, None, "neither is that of the base .*base/model.safetensors; take"),
        (1.0, 1e6, torch.float16, "beyond the range of the output's type; choose float32 or bf"),
    ],
)
def test_a_merge_that_is_not_finite_names_whose_fault_it_is(
    tmp_path: Path, base: float, branch: float, dtype: torch.dtype | None, message: str
) -> None:
    theta0 = saved(tmp_path / "base", {"w": torch.tensor([1.0, base])})
    parts = [saved(tmp_path / "branch", {"w": torch.tensor([1.0, branch])})]
    (tmp_path / "out").mkdir()
    with pytest.raises(
        MeritError, match=f"^merge: tensor 'w' of the .* is not finite: .*{message}"
    ):
        write_merged(tmp_path / "out", theta0, rules.average(["w"], parts, [1.0]), dtype=dtype)


# --- memory ---------------------------------------------------------------------------------------

MEASURE = """
import sys, torch
from pathlib import Path
from merit.io.checkpoints import Checkpoint
from merit.merge.rules import average
from merit.merge.write import write_merged
torch.set_num_threads(1)

def peak():  # in MB; getrusage would count what the process was forked from
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

base, *parts = (Checkpoint(Path(name)) for name in sys.argv[1:5])
before = peak()
write_merged(Path(sys.argv[5]), base, average(base.names, parts, [0.2, 0.3, 0.5]), threads=2)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is Linux's here")
def test_memory_does_not_follow_the_tensors(tmp_path: Path) -> None:
    """A tensor of 200 MB and three branches: whole, they would take 200 MB many times over."""
    head, _ = header({"w": TensorInfo(torch.bfloat16, (10_000, 10_000))})
    folders = [tmp_path / name for name in ("base", "a", "b", "c", "out")]
    for folder in folders:
        folder.mkdir()
    for folder in folders[:-1]:
        (folder / SINGLE).write_bytes(head)
        os.truncate(folder / SINGLE, len(head) + 2 * 10**8)  # zeros that take no room
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150
    assert (folders[-1] / SINGLE).stat().st_size == len(head) + 2 * 10**8


# --- the command ----------------------------------------------------------------------------------

NAMES = {"model.embed_tokens.weight": (4, 3), "model.layers.0.mlp.weight": (3, 3)}
EMBEDDING, MLP = NAMES


def constant(value: float, *names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full(NAMES[name], value) for name in names or NAMES}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base at 0, a at 1, b at 5, and `part`, which trained only the MLP, at 9."""
    monkeypatch.chdir(tmp_path)
    config = {"architectures": ["Qwen2ForCausalLM"], "dtype": "float32"}
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 5.0)):
        saved(tmp_path / name, constant(value), **config)
    for name in ("tokenizer.json", "LICENSE", "README.md", "pytorch_model.bin", ".hidden"):
        (tmp_path / "base" / name).write_text("{}")
    (tmp_path / "base" / "original").mkdir()
    saved(tmp_path / "part", constant(9.0, MLP))
    return tmp_path


def merge(*arguments: str, base: str = "base", branches: Sequence[str] = ("a", "b")) -> None:
    main(["merge", "--base", base, "--out", "out", "--branches", *branches, *arguments])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, **inputs: Any) -> str:
    """The one line that a refused merge prints; nothing is written."""
    before = sorted(path.name for path in Path().iterdir())
    with pytest.raises(SystemExit) as caught:
        merge(*arguments, **inputs)
    assert caught.value.code == 2
    assert sorted(path.name for path in Path().iterdir()) == before
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("merit: error: ")
    return message.removeprefix("merit: error: ")


def test_a_merge_of_folders_by_hand(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens 1 and 3: 1/4 + 15/4 = 4, over 21 entries."""
    merge("--tokens", "100", "300")
    assert {name: t.unique().tolist() for name, t in Checkpoint(Path("out")).items()} == {
        **{EMBEDDING: [4.0], MLP: [4.0]}
    }
    files = {"LICENSE", "config.json", "merge.json", SINGLE, "tokenizer.json"}
    assert {path.name for path in Path("out").iterdir()} == files
    record = json.loads(Path("out/merge.json").read_text())
    assert record == {
        **{"method": "average", "base": "base", "branches": ["a", "b"], "parameters": {}},
        **{"merge_weights": [0.25, 0.75], "weighted_by": "tokens", "merge_dtype": "base"},
        **{"displacement": pytest.approx(4 * 21**0.5), "rounding_error": 0.0},
    }
    said = capsys.readouterr().out
    assert "branch  b: 2 tensors of 2, weight 0.75\n" in said
    assert "displacement 18.3303, rounding error 0 % of it; " in said


def test_weights_near_the_end_of_the_range(models: Path) -> None:
    merge("--weights", "1e308", "1e308")
    assert Checkpoint(models / "out").read(MLP).unique().tolist() == [3.0]
    main(["merge", "--base", "base", "--branches", "a", "b", "--out", "two", "--tokens",
          str(10**400), str(10**400)])  # fmt: skip
    assert Checkpoint(models / "two").read(MLP).unique().tolist() == [3.0]


def test_a_branch_of_trained_tensors_alone_beside_whole_ones(models: Path) -> None:
    """What `part` lacks is the base's: 0 there."""
    merge("--weights", "1", "2", "1", branches=["a", "b", "part"])
    merged = Checkpoint(models / "out")
    assert merged.read(EMBEDDING).unique().tolist() == [(1 + 2 * 5 + 0) / 4]
    assert merged.read(MLP).unique().tolist() == [(1 + 2 * 5 + 9) / 4]


def test_an_average_moved_along_its_step_from_the_base(models: Path) -> None:
    """theta0 + c (mean - theta0), from 1 to 5 and past it."""
    for scale, value in (("0.25", 2.0), ("1", 5.0), ("2", 9.0)):
        arguments = ["--base", "a", "--branches", "b", "--out", scale, "--scale", scale]
        main(["merge", *arguments])
        assert Checkpoint(models / scale).read(MLP).unique().tolist() == [value]
        record = json.loads(Path(scale, "merge.json").read_text())
        assert record["parameters"] == {"scale": float(scale)}


def test_weights_follow_the_manifests_or_are_uniform(models: Path) -> None:
    for name, tokens in (("a", 30), ("b", 10)):
        (models / name / "manifest.json").write_text(json.dumps({"num_tokens": tokens}))
    merge()
    merge_record = json.loads(Path("out/merge.json").read_text())
    assert (merge_record["merge_weights"], merge_record["weighted_by"]) == ([0.75, 0.25], "tokens")
    (models / "b" / "manifest.json").unlink()
    main(["merge", "--base", "base", "--out", "two", "--branches", "a", "b"])
    assert json.loads(Path("two/merge.json").read_text())["weighted_by"] == "uniform"
    assert Checkpoint(models / "two").read(MLP).unique().tolist() == [3.0]


def test_shards_type_and_method_of_the_output(models: Path) -> None:
    """40 bytes a file: one tensor each. STAR keeps constant matrices, which are of rank one."""
    merge("--method", "star", "--scale", "0.5", "--dtype", "bfloat16", "--max-shard", "40")
    weight_map = json.loads(Path("out", INDEX).read_text())["weight_map"]
    assert weight_map == {
        EMBEDDING: "model-00001-of-00002.safetensors",
        MLP: "model-00002-of-00002.safetensors",
    }
    for _, tensor in Checkpoint(Path("out")).items():
        assert tensor.dtype == torch.bfloat16
        assert tensor.unique().tolist() == [1.5]
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"
    main(["merge", "--base", "out", "--branches", "out", "--out", "again"])
    assert dict(Checkpoint(Path("again")).items()).keys() == NAMES.keys()


def test_tied_embeddings_are_stored_once(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tied = {"tie_word_embeddings": True}
    head = {"lm_head.weight": torch.full(NAMES[EMBEDDING], 1.0)}
    saved(models / "tied", constant(0.0), text_config=tied)
    saved(models / "once", constant(1.0), text_config=tied)
    saved(models / "twice", constant(1.0) | head, text_config=tied)
    saved(models / "differs", constant(2.0) | head, text_config=tied)
    merge(base="tied", branches=["once", "twice"])
    assert Checkpoint(models / "out").names == sorted(NAMES)
    (models / "out").rename(models / "done")
    assert refusal(capsys, base="tied", branches=["once", "differs"]).startswith(
        f"differs/{SINGLE}: 'lm_head.weight' differs from '{EMBEDDING}', but tied/config.json says"
    )
    assert refusal(capsys, branches=["a", "twice"]).startswith(
        f"twice/{SINGLE}: tensor 'lm_head.weight' does not exist in the base base/{SINGLE}"
    )


def test_layouts_of_other_libraries_and_derived_buffers(models: Path) -> None:
    """A decoder stored under a vision-language model's names; `inv_freq` on either side."""
    other = {n.replace("model.", "model.language_model."): t for n, t in constant(5.0).items()}
    derived = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    saved(models / "vl", other | derived, architectures=["Qwen2ForCausalLM"])
    merge(branches=["a", "vl"])
    merged = Checkpoint(models / "out")
    assert merged.names == sorted(NAMES)
    assert merged.read(MLP).unique().tolist() == [3.0]
    saved(models / "old", constant(0.0) | derived)
    main(["merge", "--base", "old", "--branches", "a", "part", "--out", "two"])
    assert Checkpoint(models / "two").read(MLP).unique().tolist() == [5.0]


def test_weights_in_a_pickle_say_what_to_do(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "b" / SINGLE).rename(models / "b" / "pytorch_model.bin")
    said = refusal(capsys)
    assert said.startswith(f"b/{SINGLE}: checkpoint not found; pytorch_model.bin lies there")


def test_a_merger_is_one_file(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is the file's, its parameters are those of the function."""
    (models / "mergers").mkdir()
    (models / "mergers" / "far_end.py").write_text(
        "from merit.method.mergers import merger\n"
        "@merger(published='9999-12')\n"
        "def far_end(base, branches, bend=2.0, scale=1.0, dtype=None):\n"
        "    return (base + bend * scale * (branches[-1] - base)).to(dtype or base.dtype)\n"
    )
    monkeypatch.setattr(mergers, "__path__", [*mergers.__path__, str(models / "mergers")])
    merge("--method", "far-end", "--set", "bend=3", "--scale", "0.5")
    assert Checkpoint(models / "out").read(MLP).unique().tolist() == [1.5 * 5]
    record = json.loads(Path("out/merge.json").read_text())
    assert record["parameters"] == {"bend": 3.0, "scale": 0.5}
    known = ["ties", "star", "tsv", "iso-c", "iso-cts", "far-end"]  # tables keep this order
    assert [key for key in mergers.by_publication() if key in known] == known


REFUSED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "lost": (
        lambda m: save_tensors(constant(5.0, MLP), m / "b" / SINGLE),
        "",
        f"b/{SINGLE}: 1 tensors of the base base/{SINGLE} are missing, '{EMBEDDING}'",
    ),
    "other part": (
        lambda m: saved(m / "other", constant(5.0, EMBEDDING)),
        "--branches part other",
        f"other/{SINGLE}: tensors differ from the other branches'",
    ),
    "no branch": (Path.exists, "--branches a c", "c: no checkpoint here"),
    "out": (lambda m: (m / "out").mkdir(), "", "out: exists already; name another folder"),
    "count": (Path.exists, "--tokens 1", "--tokens: 1 numbers for 2 branches; give one each"),
    "negative": (Path.exists, "--weights 1 -1", "--weights: found -1.0, expected positive numbers"),
    "endless": (Path.exists, f"--tokens 1 -{10**400}", "--tokens: found -1000"),
    "weighed": (Path.exists, "--method ties --tokens 1 2", "--tokens: ties knows no merge weights"),
    "parameter": (
        Path.exists,
        "--method ties --set densty=1",
        "--set: ties has no parameter 'densty'. Did you mean `density`?",
    ),
    "twice": (Path.exists, "--method ties --set scale=1 --scale 2", "--set: 'scale' is given twi"),
    "number": (Path.exists, "--method ties --set density", "--set: density=: expected a number"),
    "range": (Path.exists, "--method star --set eta=2", "--set: eta must lie in (0, 1]"),
    "size": (Path.exists, "--max-shard 5XB", "--max-shard: found '5XB', expected a size such as"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(
    models: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    break_it, arguments, message = REFUSED[kind]
    break_it(models)
    assert refusal(capsys, *arguments.split()).startswith(message)
