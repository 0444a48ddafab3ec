"""What every settings block shares, and how a YAML file is read into one.

Unknown keys, wrong types and contradictions are refused with the file, the key and, where one is
close, the key that was probably meant.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from merit.errors import MeritError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator in use accepts
DEEPEST, LARGEST = 100, 300_000  # of a YAML file


class Settings(BaseModel):
    """Base of every settings block: immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _note(cls, values: Any, info: ValidationInfo) -> Any:
        """Tell `checked`, whose context this is, which block a mapping is read as."""
        if info.context is not None:
            info.context[id(values)] = cls
        return values


AnySettings = TypeVar("AnySettings", bound=Settings)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader, libyaml's if it is installed, that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            where = f"{key.start_mark.name}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise MeritError(f"{where}: a key must be a word, found a list or a mapping")
            if key.value in seen:
                raise MeritError(f"{where}: key `{key.value}` is there twice")
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's keys and values. Raises MeritError that names the file."""
    if not path.is_file():
        raise MeritError(f"{path}: file not found; run from the repository's root")
    try:
        with path.open(encoding="utf-8-sig") as file:
            _check_bounds(yaml.parse(file, Loader=_Loader))
            file.seek(0)
            values = yaml.load(file, Loader=_Loader)
        json.dumps(values, ensure_ascii=False, default=str).encode()  # half a surrogate pair
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise MeritError(f"{path}: not valid YAML: {' '.join(str(why).split())}") from None
    if not isinstance(values, dict):
        raise MeritError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def _check_bounds(events: Iterable[yaml.Event]) -> None:
    """Raise ValueError for what libyaml would not survive: depth, and aliases of aliases."""
    sizes: dict[str, int] = {}  # of what an anchor names, in characters and nodes
    nodes: list[tuple[str, int]] = [("", 0)]  # open ones: anchor, size so far
    for event in events:
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            nodes.append((event.anchor or "", 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = nodes.pop()
            sizes[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            size = sizes[event.anchor or ""] = 1 + len(event.value)
        elif isinstance(event, yaml.AliasEvent):  # one within its own anchor has no size yet
            size = sizes.get(event.anchor or "", LARGEST)
        nodes[-1] = (nodes[-1][0], nodes[-1][1] + size)
        if len(nodes) > DEEPEST or nodes[-1][1] >= LARGEST:
            raise ValueError(
                f"nested more than {DEEPEST} deep, or larger than {LARGEST} characters with its "
                "aliases written out"
            )


def load_yaml(path: Path, model: type[AnySettings]) -> AnySettings:
    """The file's settings. Raises MeritError, one line per mistake, with file and key."""
    return checked(read_yaml(path), model, path)


def checked(values: Any, model: type[AnySettings], path: Path) -> AnySettings:
    """The settings of `values`, read from `path`. Raises MeritError, a line per mistake."""
    blocks: dict[int, type[Settings]] = {}
    try:
        return model.model_validate(values, context=blocks)
    except ValidationError as error:
        lines = [f"{path}: {_explain(entry, values, blocks)}" for entry in error.errors()]
        raise MeritError("\n".join(lines)) from None


def _explain(entry: Any, values: Any, blocks: Mapping[int, type[Settings]]) -> str:
    """One sentence per pydantic error."""
    keys: list[str] = []  # the error's place, without pydantic's names for members of unions
    block: type[Settings] | None = None
    for part in entry["loc"]:
        with suppress(LookupError, TypeError):
            block, values = blocks.get(id(values)), values[part]
            keys.append(str(part))
    if entry["type"] == "missing":
        return f"key `{'.'.join([*keys, str(entry['loc'][-1])])}` is missing"
    key = ".".join(keys) or "(top level)"
    if entry["type"] == "extra_forbidden" and block:
        return f"unknown key `{key}`.{nearest(keys[-1], sorted(block.model_fields))}"
    if entry["type"] == "value_error":
        prefix = f"key `{key}`: " if keys else ""
        return prefix + str(entry["ctx"]["error"])
    return f"key `{key}`: found {entry['input']!r}: {entry['msg']}"


def nearest(word: str, known: Sequence[str]) -> str:
    """ "Did you mean `x`?" if one of `known` is close, else the known ones."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f" Did you mean `{close[0]}`?"
    return f" Known here: {', '.join(known)}." if known else ""
