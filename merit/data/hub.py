"""A source's files: in a folder laid out like its hub repository, fetched if settings say so."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from merit.data.images import archive_table
from merit.errors import MeritError
from merit.io.artifacts import file_hash

# where huggingface_hub notes the commit of a file that it fetched into a folder
NOTES = Path(".cache") / "huggingface" / "download"


def files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files below `folder` that match, sorted per pattern; none if a pattern matches nothing.

    Of a pattern `a|b` either is enough; b may be a folder, whose files are not listed. Raises
    MeritError if parts of a file in several parts (`-00003-of-00022`) are missing.
    """
    found: list[Path] = []
    for pattern in patterns:
        matches = sorted({path for part in pattern.split("|") for path in folder.glob(part)})
        if not matches:
            return []
        found += [path for path in matches if not path.is_dir()]
    parts: dict[tuple[str, int], set[int]] = {}
    for path in found:
        name = path.relative_to(folder).as_posix()
        if match := re.fullmatch(r"(.*)-(\d{5})-of-(\d{5}).*", name):
            parts.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    missing = [
        f"{stem}-{i:05d}-of-{count:05d}"
        for (stem, count), numbers in sorted(parts.items())
        for i in range(count)
        if i not in numbers
    ]
    if missing:
        raise MeritError(
            f"{folder}: {len(missing)} part(s) missing, {missing[0]} the first; fetch the rest"
        )
    return list(dict.fromkeys(found))


def provide(
    folder: Path,
    patterns: Sequence[str],
    repository: str | None,
    revision: str | None,
    download: bool,
    hint: str = "",
) -> list[Path]:
    """The files of the patterns; those of a hub repository are fetched at `revision` if missing.

    Raises one MeritError that says what to do: files missing that may not or cannot be fetched, a
    hub that is switched off, unreachable or asks for consent, a revision that does not exist, a
    file that was fetched at another revision.
    """
    found = files(folder, patterns)
    if not found:
        absent = [pattern for pattern in patterns if not files(folder, [pattern])]
        missing = f"{folder}: missing {', '.join(absent or patterns)}"
        if repository is None:
            raise MeritError(f"{missing}; {hint}")
        place = f"https://huggingface.co/datasets/{repository}/tree/{revision or 'main'}"
        if revision is None:
            raise MeritError(
                f"{missing}; no revision of it is pinned: set `revision` to a commit of "
                f"{place}, or lay its files there"
            )
        by_hand = f"{missing}; lay the files there as at {place}"
        if not download:
            raise MeritError(f"{by_hand}, or set `data.download: true`")
        fetch(folder, patterns, repository, revision, by_hand)
        found = files(folder, patterns)
        if not found:
            raise MeritError(f"{missing}; {place} does not have them either")
    for path in found:
        noted = noted_revision(folder, path)
        if noted and revision and not noted.startswith(revision):
            raise MeritError(
                f"{path}: fetched at revision {noted}, but {revision} is asked for; remove it, or "
                "set `revision` of this source"
            )
    return found


def noted_revision(folder: Path, path: Path) -> str | None:
    """The commit at which huggingface_hub fetched the file; None for one laid there by hand."""
    note = folder / NOTES / f"{path.relative_to(folder).as_posix()}.metadata"
    lines = note.read_text(encoding="utf-8").splitlines() if note.is_file() else []
    return lines[0] if lines else None


def fetch(
    folder: Path,
    patterns: Sequence[str],
    repository: str,
    revision: str | None,
    missing: str,
    kind: Literal["dataset", "model"] = "dataset",
) -> None:
    """Bring the files of a repository that match into `folder`.

    Raises MeritError if the hub is switched off (the message begins with `missing`), cannot be
    reached, asks for consent, or has no such repository or revision.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise MeritError(
            f"{missing}, or let the hub be asked: it is switched off (HF_HUB_OFFLINE=0 turns it on)"
        )
    place = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"
    try:
        snapshot_download(
            repository,
            repo_type=kind,
            revision=_in_full(repository, revision, kind, place),
            allow_patterns=[pattern.split("|")[0] for pattern in patterns],
            local_dir=folder,
        )
    except errors.GatedRepoError:
        raise MeritError(
            f"{place}: gated; accept its conditions there, then `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise MeritError(f"{place}: has no revision {revision}; check `revision`") from None
    except errors.RepositoryNotFoundError:
        raise MeritError(f"{place}: no such repository, or a private one; check HF_TOKEN") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MeritError(f"{place}: not reachable ({reason}); {missing}") from None


def _in_full(repository: str, revision: str | None, kind: str, place: str) -> str | None:
    """The commit that a hexadecimal revision abbreviates: the hub takes only whole hashes.

    Raises MeritError unless exactly one commit of the repository begins so.
    """
    from huggingface_hub import HfApi

    if revision is None or not re.fullmatch(r"[0-9a-f]{7,39}", revision):
        return revision
    commits = HfApi().list_repo_commits(repository, repo_type=kind)
    found = [c.commit_id for c in commits if c.commit_id.startswith(revision)]
    if len(found) != 1:
        raise MeritError(f"{place}: {len(found)} commits begin with {revision}; check `revision`")
    return found[0]


def describe(folder: Path, path: Path) -> dict[str, object]:
    """A file's entry in a manifest: name, size, hash; `revision` if the hub's client noted it.

    An archive's `members_sha256` is the hash of its members' names, sizes and checksums (CRC-32):
    36 GB need not be read.
    """
    found: dict[str, object] = {
        "file": path.relative_to(folder).as_posix(),
        "num_bytes": path.stat().st_size,
    }
    if path.suffix == ".zip":
        table = "".join(f"{name}\t{size}\t{crc}\n" for name, size, crc in archive_table(path))
        found["members_sha256"] = hashlib.sha256(table.encode()).hexdigest()
    else:
        found["sha256"] = file_hash(path)
    if noted := noted_revision(folder, path):
        found["revision"] = noted
    return found
