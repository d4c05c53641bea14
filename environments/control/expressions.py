"""A small arithmetic language, for expressions written by someone else: they are interpreted, never run as Python.

    numbers      3  0.5  1e-3
    variables    the names that the caller allows
    arithmetic   + - * / ** and signs, binding as in Python
    comparisons  < <= > >= == != (also chained: 0 < t < 3), and, or, not; they give 1 or 0, and any number but 0 is true
    functions    abs(a)  min(a, b, ...)  max(a, b, ...)  pow(a, b)  clip(value, low, high)  ifelse(condition, a, b)

`and`, `or` and `ifelse` evaluate only what they need. Every value is a finite float, so none can grow large in memory,
and the limits on length and depth bound the work: the longest expression takes less than a millisecond.
"""

import ast
import itertools
import math
import operator
import re
from collections.abc import Callable, Collection

MAX_LENGTH = 500  # characters; it bounds the number of operations, too
MAX_DEPTH = 50  # operations nested in each other (a + b + c + d are three), and likewise brackets

# What Python's parser never gets to see: other characters (strings, comments, subscripts, lambdas, assignments, ...),
# and a letter right behind a digit or a point, except in 1e5 (attributes, 0x1f, 1_000, 2j, 1and 2)
FORBIDDEN = re.compile(r"[^A-Za-z0-9_.,+\-*/<>=!() \t\r\n]|[0-9.](?![eE][+-]?[0-9])[A-Za-z_]")

Expression = Callable[[dict[str, float]], float]  # values of the variables -> value; may raise ExpressionError


class ExpressionError(ValueError):
    """An expression cannot be read, or fails while it is evaluated. The message says why, in a short line."""


def clip(value: float, low: float, high: float) -> float:
    """`value` moved into [low, high]."""
    return min(max(value, low), high)


OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # unlike **, an error where the power is a complex number
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
FUNCTIONS: dict[str, tuple[range, Callable]] = {  # name -> possible numbers of arguments, function
    "abs": (range(1, 2), abs),
    "min": (range(2, MAX_LENGTH), min),
    "max": (range(2, MAX_LENGTH), max),
    "pow": (range(2, 3), math.pow),
    "clip": (range(3, 4), clip),
}


def parse_expression(text: str, variables: Collection[str]) -> Expression:
    """Read any text as an expression in these variables; raises ExpressionError if it is none."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"it is longer than {MAX_LENGTH} characters")
    if forbidden := FORBIDDEN.search(text):
        raise ExpressionError(f"{ascii(forbidden[0])} does not belong there")
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth > MAX_DEPTH:
            raise ExpressionError("it is nested too deep")
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deep for it
        raise ExpressionError("it is not well-formed") from error
    return build(tree.body, frozenset(variables), MAX_DEPTH)


def build(node: ast.AST, variables: frozenset[str], depth: int) -> Expression:
    """A node with at most `depth` operations nested in each other as a function. Whatever is not listed is refused."""
    if depth < 0:
        raise ExpressionError("it is nested too deep")

    def parts(*nodes: ast.AST) -> list[Expression]:
        return [build(part, variables, depth - 1) for part in nodes]

    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            number = apply(float, value)
            return lambda values: number
        case ast.Name(id=name) if name in variables:
            return lambda values: values[name]
        case ast.UnaryOp(op=op) if type(op) in OPERATORS:
            return eager(OPERATORS[type(op)], parts(node.operand))
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            return eager(OPERATORS[type(op)], parts(node.left, node.right))
        case ast.Compare(ops=ops) if all(type(op) in OPERATORS for op in ops):
            return eager(chain([OPERATORS[type(op)] for op in ops]), parts(node.left, *node.comparators))
        case ast.BoolOp(op=op):
            decide, conditions = all if isinstance(op, ast.And) else any, parts(*node.values)
            return lambda values: float(decide(condition(values) for condition in conditions))
        case ast.Call(func=ast.Name(id="ifelse"), args=[_, _, _], keywords=[]):
            condition, yes, no = parts(*node.args)
            return lambda values: yes(values) if condition(values) else no(values)
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
            counts, function = FUNCTIONS[name]
            if len(node.args) not in counts:
                raise ExpressionError(f"{name} has the wrong number of arguments")
            return eager(function, parts(*node.args))
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            raise ExpressionError(f"{name[:30]} cannot be used like that")
    raise ExpressionError("a part of it is not in the language")


def eager(function: Callable, operands: list[Expression]) -> Expression:
    """Evaluate all operands, then the function of them."""
    return lambda values: apply(function, *[operand(values) for operand in operands])


def chain(comparisons: list[Callable]) -> Callable:
    """a < b <= c: one comparison less than numbers, and true if each holds between its two neighbours."""
    return lambda *numbers: all(
        compare(*pair) for compare, pair in zip(comparisons, itertools.pairwise(numbers), strict=True)
    )


def apply(function: Callable, *numbers: float) -> float:
    """The function of these numbers as a finite float; raises ExpressionError if there is none."""
    try:
        value = float(function(*numbers))
    except ZeroDivisionError as error:
        raise ExpressionError("division by zero") from error
    except ValueError as error:
        raise ExpressionError("a power that has no real value") from error
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ExpressionError("a number is too large")
    return value
