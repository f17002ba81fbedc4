"""Airtable's formula language, as far as `filterByFormula` of this service and of pyairtable needs it.

A tokenizer, a recursive-descent parser and an evaluator over typed values. It knows nothing of tables: a row
is asked for its cells by field name. What it does not know is refused, never guessed, so that a test cannot
pass on a formula that Airtable would read otherwise. A row whose formula ends in an error does not match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from app.sandbox.formula_values import ARITIES, FUNCTIONS, OPERATORS, NoValueError, Value, truth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

#: Deeper nesting is refused, so that no formula can exhaust the stack.
MAX_DEPTH = 32


class FormulaError(ValueError):
    """The text is no formula, or one beyond the part of the language that is known here."""


class Row(Protocol):
    """One record, as a formula sees it. Datetimes are aware."""

    @property
    def record_id(self) -> str: ...
    @property
    def created_time(self) -> datetime: ...
    @property
    def now(self) -> datetime: ...
    def cell(self, name: str) -> Value: ...


@dataclass(frozen=True, slots=True)
class Constant:
    value: Value


@dataclass(frozen=True, slots=True)
class Reference:
    field: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Operators of one rank, from left to right. Flat, so that a long sum is no deep one."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


@dataclass(frozen=True, slots=True)
class Call:
    function: str
    arguments: tuple[Node, ...]


Node: TypeAlias = Constant | Reference | Chain | Call


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula. `fields` are the names it refers to."""

    root: Node
    fields: frozenset[str]

    def matches(self, row: Row) -> bool:
        try:
            return truth(_evaluate(self.root, row))
        except NoValueError:
            return False

    def wanted_texts(self) -> tuple[str, frozenset[str]] | None:
        """Name the one field and the texts of which one must stand in it, if that is all the formula asks.

        That is `{F}='a'` or `OR({F}='a', {F}='b')`: what an index can answer without a look at every row.
        """
        match self.root:
            case Call("OR", parts):
                pass
            case _:
                parts = (self.root,)
        pairs = [_equality(part) for part in parts]
        fields = {pair[0] for pair in pairs if pair is not None}
        texts = {pair[1] for pair in pairs if pair is not None}
        if None in pairs or len(fields) != 1:
            return None
        return fields.pop(), frozenset(texts)


def parse(text: str) -> Formula:
    """Parse a formula. Raises `FormulaError`."""
    parser = _Parser(_tokens(text))
    root = parser.expression()
    parser.expect("end")
    return Formula(root, frozenset(parser.fields))


# --- text to tokens ---

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<field>\{(?:[^}\\]|\\.)*\})
      | (?P<name>[^\W\d]\w*)
      | (?P<sign><=|>=|!=|[=<>&+*/(),-])
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_CONTROL = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, place)
        if found is None or found.lastgroup is None:
            raise FormulaError(f"unexpected text at character {place + 1}")
        kind, raw = found.lastgroup, found[found.lastgroup]
        if kind == "text":
            raw = re.sub(r"\\(.)", lambda m: _CONTROL.get(m[1], m[1]), raw[1:-1], flags=re.DOTALL)
        elif kind == "field":
            # Only a closing brace needs a backslash in a name; any other one belongs to the name.
            raw = raw[1:-1].replace(r"\}", "}")
        tokens.append(_Token(raw if kind == "sign" else kind, raw))
        place = found.end()
    return tokens


# --- tokens to a tree ---

#: Binary operators from the loosest to the tightest.
_LEVELS = (frozenset({"=", "!=", "<", "<=", ">", ">="}), frozenset("&"), frozenset("+-"), frozenset("*/"))


class _Parser:
    def __init__(self, tokens: Sequence[_Token]) -> None:
        self.fields: set[str] = set()
        self._tokens = tokens
        self._place = 0
        self._depth = 0

    def expression(self) -> Node:
        return self._deeper(lambda: self._binary(0))

    def _deeper(self, part: Callable[[], Node]) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FormulaError(f"nested more than {MAX_DEPTH} deep")
        node = part()
        self._depth -= 1
        return node

    def expect(self, kind: str) -> _Token:
        token = self._tokens[self._place]
        if token.kind != kind:
            raise FormulaError(f"expected {kind!r}, found {token.text!r}")
        self._place = min(self._place + 1, len(self._tokens) - 1)
        return token

    def _next_is(self, *kinds: str) -> bool:
        return self._tokens[self._place].kind in kinds

    def _binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._primary()
        first = self._binary(level + 1)
        rest: list[tuple[str, Node]] = []
        while self._next_is(*_LEVELS[level]):
            operator = self.expect(self._tokens[self._place].kind).text
            rest.append((operator, self._binary(level + 1)))
        return Chain(first, tuple(rest)) if rest else first

    def _primary(self) -> Node:
        token = self._tokens[self._place]
        self.expect(token.kind)
        match token.kind:
            case "number":
                return Constant(float(token.text))
            case "text":
                return Constant(token.text)
            case "-":
                return Chain(Constant(0), (("-", self._deeper(self._primary)),))
            case "(":
                node = self.expression()
                self.expect(")")
                return node
            case "name" if self._next_is("("):
                return self._call(token.text.upper())
            case "field" | "name":
                self.fields.add(token.text)
                return Reference(token.text)
        raise FormulaError(f"unexpected {token.text!r}")

    def _call(self, function: str) -> Node:
        self.expect("(")
        arguments: list[Node] = []
        while not self._next_is(")"):
            if arguments:
                self.expect(",")
            arguments.append(self.expression())
        self.expect(")")
        if function not in ARITIES:
            raise FormulaError(f"unknown function {function}")
        least, most = ARITIES[function]
        if not least <= len(arguments) <= most:
            raise FormulaError(f"wrong number of arguments for {function}")
        return Call(function, tuple(arguments))


def _equality(node: Node) -> tuple[str, str] | None:
    match node:
        case Chain(Reference(field), (("=", Constant(str(text))),)) if text:
            return field, text
    return None


# --- the tree over a row ---

_OF_THE_ROW: dict[str, Callable[[Row], Value]] = {
    "RECORD_ID": lambda row: row.record_id,
    "CREATED_TIME": lambda row: row.created_time,
    "NOW": lambda row: row.now,
    "TODAY": lambda row: row.now.replace(hour=0, minute=0, second=0, microsecond=0),
}


def _evaluate(node: Node, row: Row) -> Value:
    match node:
        case Constant(value):
            return value
        case Reference(field):
            return row.cell(field)
        case Chain(first, rest):
            value = _evaluate(first, row)
            for operator, operand in rest:
                value = OPERATORS[operator](value, _evaluate(operand, row))
            return value
        case Call(function, arguments):
            return _call(function, arguments, row)


def _call(function: str, arguments: Sequence[Node], row: Row) -> Value:
    match function:
        case "AND":
            return all(truth(_evaluate(argument, row)) for argument in arguments)
        case "OR":
            return any(truth(_evaluate(argument, row)) for argument in arguments)
        case "IF":
            branches = arguments[1:2] if truth(_evaluate(arguments[0], row)) else arguments[2:]
            return _evaluate(branches[0], row) if branches else None
        case _ if function in _OF_THE_ROW:
            return _OF_THE_ROW[function](row)
    return FUNCTIONS[function]([_evaluate(argument, row) for argument in arguments])
