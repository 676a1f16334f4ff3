"""Filters select records by an expression over their columns, such as `aesthetic > 5 and width >= 512`.

The language is a small part of Python's expressions: names of columns, numbers, texts, tuples of them after `in`;
`+ - * /`, comparisons (also chained), `in`, `and or not`, `is None`; the functions min, max, abs, len and lower.
Everything else is refused. Python's parser reads the expression; it is evaluated here, on whole columns, and never run
by Python.

A missing value makes every expression that depends on it unknown, as in SQL. If x is missing, `x > 5`, `not x > 5` and
`x == x` are all unknown; `unknown or true` is true, and `unknown and false` is false. Division by zero is unknown too.
A record is selected if the whole expression is true. So neither `aesthetic > 5` nor its negation selects a record
without that value, but `aesthetic is None or aesthetic > 5` does.
"""

import ast
import difflib
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sdjax.train.data.table import Table

MAX_LENGTH = 10_000
MAX_DEPTH = 100

_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_COMPARISONS = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_SIGNS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.In: "in",
    ast.NotIn: "not in", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/",
}  # fmt: skip
FUNCTIONS = ("min", "max", "abs", "len", "lower")


class FilterError(ValueError):
    """An expression is not a valid filter, or does not fit the columns; the message says why."""


class _Value(NamedTuple):
    """A column: a float64, bool or object array, arbitrary where not `known`. Kind is "number", "truth" or "text"."""

    data: np.ndarray
    known: np.ndarray
    kind: str


def select(expression: str, table: Table) -> np.ndarray:
    """Returns a bool array: the rows of the table for which the expression is true.

    Raises FilterError for anything outside the language, for unknown columns, and for mixing texts and numbers.
    """
    value = _truth(_Evaluation(expression, table).run())
    return np.broadcast_to(value.data & value.known, len(table)).copy()


class _Evaluation:
    def __init__(self, expression: str, table: Table):
        self.expression, self.table = expression, table

    def run(self) -> _Value:
        if len(self.expression) > MAX_LENGTH:
            raise FilterError(f"a filter has at most {MAX_LENGTH} characters; got {len(self.expression)}")
        try:
            tree = ast.parse(self.expression.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self.error(f"is no expression ({getattr(error, 'msg', None) or error})") from None
        return self.value(tree.body, 0)

    def error(self, problem: str) -> FilterError:
        return FilterError(f"the filter {self.expression!r} {problem}")

    def value(self, node: ast.expr, depth: int) -> _Value:
        if depth > MAX_DEPTH:
            raise self.error(f"is nested more than {MAX_DEPTH} deep")
        method: Callable[..., _Value] | None = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise self.error(
                f"holds {ast.unparse(node)!r}; it may hold columns, numbers, texts, + - * /, comparisons, in, and, or, "
                f"not, is None, and {', '.join(FUNCTIONS)}"
            )
        return method(node, depth + 1)

    def _name(self, node: ast.Name, depth: int) -> _Value:
        if node.id not in self.table.names:
            near = difflib.get_close_matches(node.id, self.table.names, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise self.error(f"names {node.id!r}{hint}; the columns are {', '.join(self.table.names) or 'none'}")
        data = self.table[node.id]
        if self.table.kinds[node.id] == "number":
            return _Value(data, ~np.isnan(data), "number")
        known = np.array([text is not None for text in data], bool)
        return _Value(np.where(known, data, ""), known, "text")

    def _constant(self, node: ast.Constant, depth: int) -> _Value:
        if isinstance(node.value, bool | int | float):
            try:
                return _Value(np.array(float(node.value)), np.array(True), "number")
            except OverflowError:
                raise self.error("holds a number that is too large") from None
        if isinstance(node.value, str):
            return _Value(np.array(node.value, object), np.array(True), "text")
        raise self.error(f"holds {ast.unparse(node)!r}; a value is a number or a text, and None only stands after is")

    def _unaryop(self, node: ast.UnaryOp, depth: int) -> _Value:
        value = self.value(node.operand, depth)
        if isinstance(node.op, ast.Not):
            value = self.truth(value, node.operand)
            return _Value(~value.data, value.known, "truth")
        if isinstance(node.op, ast.USub):
            return _Value(-self.numbers(node, value)[0].data, value.known, "number")
        raise self.error(f"holds {ast.unparse(node)!r}; of signs it may hold - and not")

    def _binop(self, node: ast.BinOp, depth: int) -> _Value:
        if type(node.op) not in _ARITHMETIC:
            raise self.error(f"holds {ast.unparse(node)!r}; it may calculate with + - * /")
        a, b = self.numbers(node, self.value(node.left, depth), self.value(node.right, depth))
        with np.errstate(all="ignore"):
            data = np.asarray(_ARITHMETIC[type(node.op)](a.data, b.data))
        return _Value(data, a.known & b.known & np.isfinite(data), "number")

    def _boolop(self, node: ast.BoolOp, depth: int) -> _Value:
        """Kleene's logic: unknown unless the known values decide."""
        parts = [self.truth(self.value(part, depth), part) for part in node.values]
        decisive = isinstance(node.op, ast.Or)  # the value that decides alone
        decided = _any([part.known & (part.data == decisive) for part in parts])
        known = decided | ~_any([~part.known for part in parts])
        return _Value(decided if decisive else ~decided, known, "truth")

    def _compare(self, node: ast.Compare, depth: int) -> _Value:
        operands = [node.left, *node.comparators]
        results = []
        for left, op, right in zip(operands, node.ops, operands[1:]):
            if isinstance(op, ast.Is | ast.IsNot):
                results.append(self.missing(left, op, right, depth))
            elif isinstance(op, ast.In | ast.NotIn):
                results.append(self.member(left, op, right, depth))
            else:
                a, b = self.value(left, depth), self.value(right, depth)
                self.alike(node, a, b)
                data = np.asarray(_COMPARISONS[type(op)](a.data, b.data), bool)
                results.append(_Value(data, a.known & b.known, "truth"))
        false = _any([r.known & ~r.data for r in results])
        return _Value(~false, false | ~_any([~r.known for r in results]), "truth")

    def missing(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> _Value:
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise self.error(f"holds 'is {ast.unparse(right)}'; only None stands after is")
        known = self.value(left, depth).known
        return _Value(~known if isinstance(op, ast.Is) else known, np.ones_like(known), "truth")

    def member(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> _Value:
        """`x in (a, b)` tests whether x is one of them; `a in b`, for two texts, tests whether b contains a."""
        a = self.value(left, depth)
        if isinstance(right, ast.Tuple | ast.List | ast.Set):
            if not all(isinstance(one, ast.Constant) for one in right.elts):
                raise self.error(f"holds {ast.unparse(right)!r}; what is listed after in are numbers or texts")
            listed = [self.value(one, depth) for one in right.elts]
            for one in listed:
                self.alike(right, a, one)
            data = _any([np.asarray(a.data == one.data, bool) for one in listed] or [np.array(False)])
            known = a.known
        else:
            b = self.value(right, depth)
            if (a.kind, b.kind) != ("text", "text"):
                raise self.error(f"looks with {_SIGNS[type(op)]} into {ast.unparse(right)!r}, which is no text or list")
            data = np.asarray(np.frompyfunc(lambda part, whole: part in whole, 2, 1)(a.data, b.data), bool)
            known = a.known & b.known
        return _Value(~data if isinstance(op, ast.NotIn) else data, known, "truth")

    def _call(self, node: ast.Call, depth: int) -> _Value:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name not in FUNCTIONS or node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise self.error(f"calls {ast.unparse(node)!r}; the functions are {', '.join(FUNCTIONS)}")
        values = [self.value(arg, depth) for arg in node.args]
        if name in ("min", "max"):
            if len(values) < 2:
                raise self.error(f"calls {ast.unparse(node)!r}; {name} takes two or more numbers")
            values = list(self.numbers(node, *values))
            function = np.minimum if name == "min" else np.maximum
            data, known = values[0].data, values[0].known
            for value in values[1:]:
                data, known = function(data, value.data), known & value.known
            return _Value(np.asarray(data), known, "number")
        if len(values) != 1:
            raise self.error(f"calls {ast.unparse(node)!r}; {name} takes one value")
        if name == "abs":
            (value,) = self.numbers(node, *values)
            return _Value(np.abs(value.data), value.known, "number")
        (value,) = values
        if value.kind != "text":
            raise self.error(f"calls {ast.unparse(node)!r}; {name} takes a text, and this is a {value.kind}")
        if name == "len":
            return _Value(np.asarray(np.frompyfunc(len, 1, 1)(value.data), np.float64), value.known, "number")
        return _Value(np.asarray(np.frompyfunc(str.lower, 1, 1)(value.data), object), value.known, "text")

    def truth(self, value: _Value, node: ast.expr) -> _Value:
        try:
            return _truth(value)
        except FilterError:
            raise self.error(f"takes the text {ast.unparse(node)!r} for true or false; compare it") from None

    def numbers(self, node: ast.expr, *values: _Value) -> Sequence[_Value]:
        for value in values:
            if value.kind == "text":
                raise self.error(f"calculates with a text in {ast.unparse(node)!r}")
        return [_Value(value.data.astype(np.float64), value.known, "number") for value in values]

    def alike(self, node: ast.expr, a: _Value, b: _Value) -> None:
        if (a.kind == "text") != (b.kind == "text"):
            raise self.error(f"compares a text with a number in {ast.unparse(node)!r}")


def _truth(value: _Value) -> _Value:
    if value.kind == "text":
        raise FilterError("a filter is true or false for a record, and this one is a text; compare it")
    return _Value(value.data != 0, value.known, "truth")


def _any(parts: Sequence[np.ndarray]) -> np.ndarray:
    result = parts[0]
    for part in parts[1:]:
        result = result | part
    return result
