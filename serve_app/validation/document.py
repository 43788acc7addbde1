"""A YAML file read with the line of every key, and with the faults that a plain reader passes over in silence."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from serve_app.validation.problems import Place, Problem


@dataclass(slots=True)
class Document:
    """What a file says; `data` is None where it could not be read, and `problems` say why."""

    data: dict[str, Any] | None = None
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read(path: Path) -> Document:
    """Read one YAML document that must be a mapping. Never raises for what the file holds."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        return Document(problems=[Problem((), f"cannot be read: {exc.strerror}")])
    except UnicodeDecodeError as exc:
        return Document(problems=[Problem((), f"is not UTF-8: {exc.reason} at byte {exc.start}")])
    return parse(text)


def parse(text: str) -> Document:
    """Read one YAML document from its text."""
    document = Document()
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            document.problems.extend(_walk(node, (), document.lines, set()))
        data = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as exc:
        document.problems.append(_syntax(exc))
        return document
    except (yaml.YAMLError, ValueError) as exc:  # a control character; a date such as 2026-02-31
        document.problems.append(Problem((), f"not valid YAML: {exc}"))
        return document
    if isinstance(data, dict):
        document.data = data
    else:
        document.problems.append(Problem((), "expected a mapping at the top, with proxy_location, applications, ..."))
    return document


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], seen: set[int]) -> Iterator[Problem]:
    """Note the line of every key and list entry; yield keys written twice and aliases that hold themselves."""
    if id(node) in seen:
        return  # an alias: its lines are noted where it is anchored
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*place, index] = item.start_mark.line + 1
            yield from _walk(item, (*place, index), lines, seen)
    elif isinstance(node, yaml.MappingNode):
        yield from _walk_mapping(node, place, lines, seen)


def _walk_mapping(node: yaml.MappingNode, place: Place, lines: dict[Place, int], seen: set[int]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        here = (*place, key.value)
        if key.value in first and key.value != "<<":
            yield Problem(here, f"written twice, first on line {first[key.value]}; only one would count", line=line)
        first.setdefault(key.value, line)
        lines[here] = line
        yield from _walk(value, here, lines, seen)


def _syntax(exc: yaml.MarkedYAMLError) -> Problem:
    mark = exc.problem_mark or exc.context_mark
    rule = " ".join(part for part in (exc.context, exc.problem) if part)
    if mark is None:
        return Problem((), f"not valid YAML: {rule}")
    return Problem((), f"not valid YAML at column {mark.column + 1}: {rule}", line=mark.line + 1)
