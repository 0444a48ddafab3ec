"""A source's files: in a folder, fetched from the hub, or one message that says what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from public_fixtures import pack, save
from requests import Response

from merit.data.hub import NOTES, describe, fetch, files, provide
from merit.errors import MeritError

REVISION = "a" * 40
REPOSITORY = "owner/name"


def call(folder: Path, download: bool = True, revision: str | None = REVISION) -> list[str]:
    patterns = ["x.json", "images.zip|unpacked"]
    return [path.name for path in provide(folder, patterns, REPOSITORY, revision, download)]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_what_is_there_is_not_fetched(tmp_path: Path) -> None:
    save(tmp_path / "x.json", "[]")
    save(tmp_path / "images.zip", "z")
    assert call(tmp_path) == ["x.json", "images.zip"]
    (tmp_path / "images.zip").unlink()
    (tmp_path / "unpacked").mkdir()
    assert call(tmp_path) == ["x.json"]


def test_what_is_asked_for_is_fetched_and_no_more(
    tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one revision, which the settings may abbreviate."""

    def download(repository: str, **given: Any) -> None:
        assert (repository, given["repo_type"]) == (REPOSITORY, "dataset")
        assert given["revision"] == REVISION
        assert given["allow_patterns"] == ["x.json", "images.zip"]
        for name in given["allow_patterns"]:
            save(given["local_dir"] / name, "z")

    commits = [SimpleNamespace(commit_id=c) for c in (REVISION, "c" * 40)]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_commits", lambda *_, **__: commits)
    for folder, revision in (("whole", REVISION), ("short", "aaaaaaa")):
        assert call(tmp_path / folder, revision=revision) == ["x.json", "images.zip"]
    with pytest.raises(MeritError, match=r"owner/name: 0 .*bbbbbbb"):
        call(tmp_path / "none", revision="bbbbbbb")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("m", response=Response()), "gated"),
        (errors.RepositoryNotFoundError("m", response=Response()), "no such repository"),
        (errors.RevisionNotFoundError("m", response=Response()), REVISION),
        (errors.LocalEntryNotFoundError("no way"), "no way"),
        (ConnectionResetError("no way"), "no way"),
    ],
)
def test_what_the_hub_answers_is_one_message(
    tmp_path: Path,
    online: None,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(MeritError, match=rf"datasets/owner/name: .*{message}"):
        call(tmp_path)
    with pytest.raises(MeritError, match=rf"huggingface\.co/owner/name: .*{message}"):
        fetch(tmp_path, ["x"], REPOSITORY, REVISION, "missing", kind="model")


def test_nothing_is_fetched_against_the_settings_or_without_a_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MeritError, match=r"missing x\.json, .*HF_HUB_OFFLINE=0"):
        call(tmp_path)
    with pytest.raises(MeritError, match=r"missing x\.json, images\.zip\|unpacked"):
        call(tmp_path, download=False)
    with pytest.raises(MeritError, match="`revision`"):
        call(tmp_path, revision=None)
    with pytest.raises(MeritError, match=r"missing y\.json; it is on a shelf"):
        provide(tmp_path, ["y.json"], None, None, True, "it is on a shelf")


def test_a_file_of_another_revision_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.json", "[]")
    save(tmp_path / "images.zip", "z")
    note = tmp_path / NOTES / "x.json.metadata"
    save(note, f"{REVISION}\netag\n1.0\n")
    assert len(call(tmp_path)) == 2
    assert len(call(tmp_path, revision="aaaaaaa")) == 2  # an abbreviated one
    with pytest.raises(MeritError, match=rf"x\.json: .*{REVISION}.* b+"):
        call(tmp_path, revision="b" * 40)
    assert describe(tmp_path, tmp_path / "x.json")["revision"] == REVISION


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    for part in (0, 2):
        save(tmp_path / f"c/train-{part:05d}-of-00003-ab.parquet", "p")
    with pytest.raises(MeritError, match=r"c/train-00001-of-00003"):
        files(tmp_path, ["c/train-*.parquet"])


def test_an_archive_is_described_by_its_table(tmp_path: Path) -> None:
    pack(tmp_path / "a.zip", {"x": b"1"})
    pack(tmp_path / "b.zip", {"x": b"2"})
    hashes = [describe(tmp_path, tmp_path / f"{name}.zip")["members_sha256"] for name in "ab"]
    assert hashes[0] != hashes[1]
    save(tmp_path / "e.json", "")
    assert describe(tmp_path, tmp_path / "e.json") == {
        "file": "e.json",
        "num_bytes": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
