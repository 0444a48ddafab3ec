"""A source's files: in a folder, fetched from the hub, or one message that says what to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from public_fixtures import pack, save

from merit.data.hub import NOTES, describe, fetch, files, noted_revision, provide
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


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository, `owner/name`, at one revision; `owner/gated` asks for consent."""

    FILES: ClassVar[dict[str, bytes]] = {"x.json": b"[]", "images.zip": b"z", "other.bin": b"no"}

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith(f"/api/datasets/{REPOSITORY}/tree/{REVISION}"):
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.FILES.items()
            ]
            self.answer(200, json.dumps(rows).encode())
        elif path == f"/api/datasets/{REPOSITORY}/commits/main":
            rest = {"title": "", "message": "", "date": "2024-01-01T00:00:00.000Z", "authors": []}
            self.answer(200, json.dumps([{"id": c, **rest} for c in (REVISION, "c" * 40)]).encode())
        elif path.startswith("/api/"):
            gated, other = "owner/gated" in path, "owner/other" in path
            code = "GatedRepo" if gated else "RepoNotFound" if other else "RevisionNotFound"
            self.answer(403 if gated else 404, b"{}", {"X-Error-Code": code})
        else:
            name = path.rpartition("/")[2]
            found = {"ETag": f'"{name}"', "X-Repo-Commit": REVISION}
            self.answer(200, self.FILES[name], found)

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub(online: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real client against a server of ours."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("revision", [REVISION, "aaaaaaa"])
def test_the_real_client_fetches_what_is_asked_for_and_no_more(
    tmp_path: Path, hub: None, revision: str
) -> None:
    assert call(tmp_path, revision=revision) == ["x.json", "images.zip"]
    assert (tmp_path / "x.json").read_bytes() == b"[]"
    assert not (tmp_path / "other.bin").exists()
    assert noted_revision(tmp_path, tmp_path / "x.json") == REVISION


@pytest.mark.parametrize(
    ("repository", "revision", "message"),
    [
        ("owner/gated", REVISION, "owner/gated: gated"),
        ("owner/other", REVISION, "owner/other: no such"),
        (REPOSITORY, "b" * 40, f"owner/name: .*{'b' * 40}"),
        (REPOSITORY, "b" * 7, "owner/name: 0 .*bbbbbbb"),
    ],
)
def test_what_the_real_client_raises_is_one_message(
    tmp_path: Path, hub: None, repository: str, revision: str, message: str
) -> None:
    with pytest.raises(MeritError, match=message):
        provide(tmp_path, ["x.json"], repository, revision, True)


@pytest.mark.parametrize("error", [errors.LocalEntryNotFoundError, ConnectionResetError])
def test_a_hub_that_cannot_be_reached_is_one_message(
    tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("no way")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(MeritError, match=r"datasets/owner/name: .*no way"):
        call(tmp_path)
    with pytest.raises(MeritError, match=r"huggingface\.co/owner/name: "):
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
