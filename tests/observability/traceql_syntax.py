"""TraceQL as Grafana's own grammar parses it."""

from __future__ import annotations

import atexit
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.observability.fetched import traceql_grammar

SCRIPT = Path(__file__).with_name("parse_traceql.mjs")


class Refused(Exception):
    """A query that Tempo would refuse, or that could not find what it is after."""


@dataclass(frozen=True)
class Node:
    """A node of a syntax tree. `name` is the grammar's."""

    name: str
    text: str
    children: tuple[Node, ...]

    def find(self, name: str) -> Node | None:
        """The first child of this name."""
        return next((child for child in self.children if child.name == name), None)

    def all(self, name: str) -> Iterator[Node]:
        """This node and those below it that have this name, from the left."""
        if self.name == name:
            yield self
        for child in self.children:
            yield from child.all(name)


def parse(query: str) -> Node:
    """The tree of a query.

    Raises:
        Refused: it is not TraceQL.
    """
    parser = _parser()
    assert parser.stdin is not None
    assert parser.stdout is not None
    parser.stdin.write(json.dumps(query) + "\n")
    parser.stdin.flush()
    tree = json.loads(parser.stdout.readline())
    if not query.strip() or _has_error(tree):
        raise Refused(f"no TraceQL: {query}")
    return _node(tree)


@cache
def _parser() -> subprocess.Popen[str]:
    """One for all queries, until the tests end."""
    command = ["node", str(SCRIPT), str(traceql_grammar())]
    parser = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(_end, parser)
    return parser


def _end(parser: subprocess.Popen[str]) -> None:
    parser.kill()
    parser.communicate()


def _has_error(tree: dict[str, Any]) -> bool:
    return tree["error"] or any(_has_error(child) for child in tree["children"])


def _node(tree: dict[str, Any]) -> Node:
    return Node(tree["name"], tree["text"], tuple(_node(child) for child in tree["children"]))
