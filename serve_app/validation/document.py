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
            walk = _Walk(document.lines)
            document.problems.extend(walk.node(node, ()))
            if walk.is_endless:
                return document
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


@dataclass(slots=True)
class _Walk:
    """Notes the line of every key and list entry, and what a plain reader would pass over."""

    lines: dict[Place, int]
    done: set[int] = field(default_factory=set)
    around: set[int] = field(default_factory=set)  # the nodes the current one stands in
    is_endless: bool = False

    def node(self, node: yaml.Node, place: Place) -> Iterator[Problem]:
        """Yield what is wrong in and below a node."""
        if isinstance(node, yaml.ScalarNode):
            yield from _scalar(node, place)
        elif id(node) in self.around:
            self.is_endless = True
            yield Problem(place, "this alias holds itself")
        elif id(node) not in self.done:  # else an alias: its lines are noted where it is anchored
            self.around.add(id(node))
            yield from self._below(node, place)
            self.around.discard(id(node))
            self.done.add(id(node))

    def _below(self, node: yaml.Node, place: Place) -> Iterator[Problem]:
        if isinstance(node, yaml.MappingNode):
            yield from self._mapping(node, place)
            return
        for index, item in enumerate(node.value):
            self.lines[*place, index] = item.start_mark.line + 1
            yield from self.node(item, (*place, index))

    def _mapping(self, node: yaml.MappingNode, place: Place) -> Iterator[Problem]:
        first: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, here = key.start_mark.line + 1, (*place, key.value)
            if key.value in first and key.value != "<<":
                yield Problem(here, f"written twice, first on line {first[key.value]}; only one would count", line=line)
            first.setdefault(key.value, line)
            self.lines[here] = line
            yield from self.node(value, here)


def _scalar(node: yaml.ScalarNode, place: Place) -> Iterator[Problem]:
    """Yield where YAML reads something else than what stands there, or what JSON, as Serve is sent, cannot carry."""
    kind = node.tag.rpartition(":")[2]
    if kind == "timestamp":
        yield Problem(place, "YAML reads this as a date; put it in quotes", node.value)
    elif kind == "float" and node.value.lower().lstrip("+-.") in {"nan", "inf"}:
        yield Problem(place, "not a finite number", node.value)
    elif kind in {"int", "float"} and place[-1:] == ("version",):
        found = yaml.SafeLoader("").construct_object(node)
        if str(found) != node.value:
            yield Problem(place, f"YAML reads this as the number {found}; put it in quotes", node.value)


def _syntax(exc: yaml.MarkedYAMLError) -> Problem:
    mark = exc.problem_mark or exc.context_mark
    rule = " ".join(part for part in (exc.context, exc.problem) if part)
    if mark is None:
        return Problem((), f"not valid YAML: {rule}")
    return Problem((), f"not valid YAML at column {mark.column + 1}: {rule}", line=mark.line + 1)
