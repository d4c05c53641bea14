"""expressions.py: against Python's own arithmetic, and against whatever else a reply may hold."""

import ast
import collections
import math
import random

import pytest
from conftest import cpu_seconds
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.control.expressions import MAX_DEPTH, MAX_LENGTH, ExpressionError, parse_expression

VALUES = {"x": 1.5, "v": -2.0, "t": 3.0, "zero": 0.0}


def value(text, values=VALUES):
    return parse_expression(text, VALUES)(values)


# ---------------------------------------------------------------------------------------------------------
# By hand


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("7", 7),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5),
        ("1e-3", 0.001),
        ("2E+2", 200),
        ("1.e2", 100),
        ("x", 1.5),
        ("  x\n + \t v ", -0.5),
        ("x\r\n", 1.5),
        ("x + v * t", -4.5),
        ("(x + v) * t", -1.5),
        ("t - x - v", 3.5),
        ("t / x / v", -1),
        ("-v", 2),
        ("+v", -2),
        ("- -v", -2),
        ("-t ** 2", -9),
        ("2 ** -1", 0.5),
        ("2 ** 3 ** 2", 512),
        ("v ** 2", 4),
        ("pow(v, 3)", -8),
        ("zero ** 0", 1),
        ("abs(v)", 2),
        ("min(x, v)", -2),
        ("max(x, v, t, 1)", 3),
        ("clip(5, -1, 1)", 1),
        ("clip(v, -1, 1)", -1),
        ("clip(0.25, -1, 1)", 0.25),
        ("x < t", 1),
        ("x > t", 0),
        ("t <= 3", 1),
        ("t >= 3.5", 0),
        ("t == 3", 1),
        ("t != 3", 0),
        ("0 < t < 4", 1),
        ("0 < t < 2", 0),
        ("4 > t > 2 > 1 >= 1", 1),
        ("5 < t < 4", 0),
        ("3 * (t > 2) - 1", 2),
        ("not zero", 1),
        ("not v", 0),
        ("not t > 5", 1),
        ("x and v", 1),
        ("x and zero", 0),
        ("zero or v", 1),
        ("zero or 0 or 0.0", 0),
        ("zero and zero or t", 1),
        ("not zero and x", 1),
        ("ifelse(t > 2, x, v)", 1.5),
        ("ifelse(t > 5, x, v)", -2),
        ("ifelse(v, 1, 2)", 1),
        ("ifelse(t < 1, 1, ifelse(t < 2, 2, 3))", 3),
    ],
)
def test_values_by_hand(text, want):
    assert value(text) == want and type(value(text)) is float


@pytest.mark.parametrize(
    "text", ["zero and 1 / zero", "x or 1 / zero", "ifelse(zero, 1 / zero, 1)", "ifelse(1, x, 1 / zero)"]
)
def test_what_is_not_needed_is_not_evaluated(text):
    assert value(text) in (0, 1, 1.5)


FAILING = {
    "division by zero": ["1 / zero", "x / (t - 3)", "zero / zero", "x and 1 / zero", "ifelse(1 / zero, 1, 2)"],
    "no real value": ["v ** 0.5", "pow(v, 1 / 3)", "zero ** -1", "(-8) ** (1 / 3)"],
    "too large": [
        "10 ** 10 ** 10",
        "1e308 * 10",
        "-1e308 - 1e308",
        "1e300 / 1e-300",
        "9 ** 999",
        "t ** t ** t ** t ** t",
    ]
    + ["1e200 * 1e200 - 1e200 * 1e200", "min(1, 1e308 * 10)", "10 ** 10 ** 10 < 1"],
}


@pytest.mark.parametrize(("why", "text"), [(why, text) for why, texts in FAILING.items() for text in texts])
def test_expressions_that_fail_while_they_run(why, text):
    expression = parse_expression(text, VALUES)
    with pytest.raises(ExpressionError, match=why):
        expression(VALUES)


REFUSED = {
    "not well-formed": [
        "",
        " ",
        "x +",
        "* x",
        "../../../etc/passwd",
        "(x",
        "x)",
        ")(",
        "x v",
        "x = 1",
        "x ==",
        "min(x, v",
        "01",
        "1 2",
        "< 1",
    ]
    + [
        "def",
        "import os",
        "lambda",
        "lambda x",
        "not",
        "x === v",
        "x => v",
        "1..5",
        "print x",
        "x + not v",
        "for",
        "x !",
    ],
    "does not belong": [
        "x.real",
        "().__class__",
        "x.__class__",
        "'x'",
        '"x"',
        "x[0]",
        "{x}",
        "[x]",
        "x # y",
        "###",
        "x;v",
    ]
    + ["x ^ 2", "x % 2", "x & 1", "x | 1", "~x", "x @ v", "lambda: 1", "(x := 1)", "0x1f", "0b1", "1_000", "2j", "2x"]
    + [
        "1and 2",
        "3t",
        "\u0663",
        "x\u00b2",
        "\uff58",
        "x\\\n+ v",
        "\x00",
        "x\x00",
        "\ud800",
        "$(x)",
        "`x`",
        "x\f",
        "\x1b",
    ]
    + ["f'{x}'", "b''", "x\u2212v", "2 \u00d7 x", "<|im_end|>", "1e5x", "x\x0b", "\u2028x"],
    "cannot be used": [
        "y",
        "abs",
        "ifelse",
        "x_target",
        "__import__",
        "X",
        "foo(x)",
        "__import__(x)",
        "eval(x)",
        "x(v)",
    ]
    + ["exec(x)", "abs(x=1)", "pow(x, v=2)", "sin(x)", "ifelse(x, v)", "ifelse()", "nan", "inf", "e", "pi", "math"]
    + ["ifelse(x, v, t, t)", "ifelse(x, v, t, zero=1)", "sum(x for x in x)", "print(x)", "x1", "max(**x)", "__debug__"],
    "wrong number": [
        "abs()",
        "abs(x, v)",
        "min()",
        "min(x)",
        "max(x)",
        "pow(x)",
        "pow(x, v, t)",
        "clip(x)",
        "clip(x, 1)",
    ]
    + ["clip(x, 0, 1, 2)", "max(*x)", "min(x for x in v)"],
    "not in the language": ["True", "None", "()", "(x, v)", "x,", "x if t else v", "x in v", "x not in v", "x is v"]
    + ["x // v", "x << 2", "x >> v", "await x", "(yield)", "(yield x)", "abs(abs)(x)", "min(*x, v)", "..."]
    + ["(x for x in x)", "False and x", "None == x", "x < True"],
    "too large": ["9" * 400, "1e999", "1e309 + x", "x and " + "1" * 310, "0 * 1e400", "ifelse(0, 1e999, 1)"],
    "longer than": [
        "x" + " " * MAX_LENGTH,
        "1" * (MAX_LENGTH + 1),
        "(" * 1_000_000,
        "x + " * 200 + "x",
        "#" * 10_000_000,
    ],
    "nested too deep": [
        "(" * 499,
        "(" * 200 + "x" + ")" * 200,
        "-" * 499 + "x",
        "not " * 120 + "x",
        "abs(" * 120,
        "(" * 51,
    ]
    + ["2**" * 160 + "2", "x+" * 249 + "x", "+".join("x" * 60), "x" + "<(x" * 60 + ")" * 60, "(x,(" * 100],
}


@pytest.mark.parametrize(("why", "text"), [(why, text) for why, texts in REFUSED.items() for text in texts])
def test_texts_that_are_no_expressions(why, text):
    with pytest.raises(ExpressionError, match=why) as error:
        parse_expression(text, VALUES)
    message = str(error.value)
    assert len(message) < 80 and message.isascii() and message.isprintable() and "##" not in message


def test_the_limits_themselves_are_allowed():
    longest = "x" + " " * (MAX_LENGTH - 2) + "\n"
    assert len(longest) == MAX_LENGTH and value(longest) == 1.5
    assert value("(" * MAX_DEPTH + "x" + ")" * MAX_DEPTH) == 1.5
    assert value("-" * MAX_DEPTH + "x") == 1.5
    assert value("+".join("x" * (MAX_DEPTH + 1))) == 1.5 * (MAX_DEPTH + 1)
    assert value("max(" + ", ".join(["x"] * 160) + ")") == 1.5
    with pytest.raises(ExpressionError, match="too deep"):
        value("-" * (MAX_DEPTH + 1) + "x")


def test_only_the_given_names_are_variables():
    assert parse_expression("y + x", ["x", "y"])({"x": 1.0, "y": 2.0}) == 3
    with pytest.raises(ExpressionError, match="y cannot"):
        parse_expression("y + x", ["x"])


def test_an_expression_can_be_evaluated_again_and_again():
    expression = parse_expression("x * x - v", VALUES)
    assert [expression({**VALUES, "x": float(n)}) for n in range(4)] == [2, 3, 6, 11]


# ---------------------------------------------------------------------------------------------------------
# Random expressions, against Python's own evaluation of the same text

PYTHON = {
    "abs": abs,
    "min": min,
    "max": max,
    "pow": pow,
    "clip": lambda number, low, high: sorted((number, low, high))[1] if low <= high else high,
    "ifelse": lambda condition, yes, no: yes if condition else no,
}
ATOMS = [*VALUES, "0.0", "1.0", "2.0", "0.5", "3.25", "1e-2"]
ARITHMETIC = ["+", "-", "*", "/", "**", " + ", " - ", " * ", " / "]
COMPARISONS = [" < ", " <= ", " > ", ">=", "==", " != "]
WORDS = ["+", "-", "*", "/", "**", "<", "==", "not", "and", "or", "abs", "min", "max", "pow", "clip", "ifelse"]
SHAPES = ["flat", "flat", "({0})", "abs({0})", "min({0}, {1})", "max({0}, {1}, {2})", "pow({0}, {1})"]
SHAPES += ["clip({0}, {1}, {2})", "ifelse({c}, {0}, {1})", "(1.0 * ({c}))"]


def random_text(rng, depth=3):
    """A random expression. Flat ones are operands with operators between and no brackets: how they bind is not said."""

    def flat(operators, size):
        operands = [rng.choice(["", "", "", "-", "+", "--"]) + random_text(rng, depth - 1) for _ in range(size)]
        return operands[0] + "".join(rng.choice(operators) + operand for operand in operands[1:])

    def condition(kind):
        if kind in ("and", "or"):
            return f"{condition('plain')} {kind} {condition('not')}"
        return ("not " if kind == "not" else "") + flat(COMPARISONS, rng.choice((2, 2, 3)))

    if depth == 0 or rng.random() < 0.3:
        return rng.choice(ATOMS)
    shape = rng.choice(SHAPES)
    if shape == "flat":
        text = flat(ARITHMETIC, rng.randint(2, 4))
        return f"({text})" if rng.random() < 0.5 else text
    parts = [random_text(rng, depth - 1) for _ in range(3)]
    return shape.format(*parts, c=condition(rng.choice(["plain", "not", "and", "or"])))


def python_values(text, values):
    """What Python makes of the text and of every part of it; None for those that are not finite real numbers."""
    results = []
    for node in ast.walk(ast.parse(text, mode="eval").body):
        if isinstance(node, ast.expr) and not (isinstance(node, ast.Name) and node.id in PYTHON):
            try:
                result = eval(ast.unparse(node), {"__builtins__": {}, **PYTHON, **values})
            except (ArithmeticError, TypeError):  # TypeError: complex numbers have no order
                result = None
            results.append(result if isinstance(result, float | bool) and math.isfinite(result) else None)
    return results


def test_random_expressions_have_the_value_that_python_gives_them():
    """They agree where every part of the expression has a value; where it fails, Python fails in some part, too."""
    rng = random.Random(0)
    worked, failed, skipped, words = 0, 0, 0, collections.Counter()
    for _ in range(2500):
        text = random_text(rng)
        if len(text) > MAX_LENGTH:
            continue
        values = {name: rng.choice((0.0, 1.0, rng.uniform(-1, 1), rng.uniform(-20, 20))) for name in VALUES}
        want = python_values(text, values)
        try:
            result = value(text, values)
        except ExpressionError:
            assert None in want, text
            failed += 1
            continue
        if None in want:  # the part that fails need not be evaluated
            assert any(word in text for word in ("and", "or", "ifelse")), text
            skipped += 1
        else:
            assert type(result) is float and result == want[0], text
            worked += 1
            words.update(word for word in WORDS if word in text)
    assert worked > 1000 and failed > 200 and skipped > 10
    assert min(words[word] for word in WORDS) > 20


# ---------------------------------------------------------------------------------------------------------
# Any text

PIECES = [
    "x",
    "v",
    "t",
    "zero",
    "1",
    "2.5",
    "1e999",
    "9" * 30,
    "+",
    "-",
    "*",
    "/",
    "**",
    "//",
    "<",
    "==",
    "(",
    ")",
    ",",
    " ",
]
PIECES += [
    "not ",
    " and ",
    " or ",
    " if ",
    " else ",
    "abs(",
    "min(",
    "pow(",
    "ifelse(",
    "clip(",
    "*x",
    "x=",
    ".",
    "__class__",
]
PIECES += [
    "lambda ",
    ":",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "#",
    "\\",
    "\n",
    "\x00",
    "\u0663",
    "\ud800",
    "yield ",
    "for ",
    " in ",
]
soups = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.text(alphabet="xvt0123456789.eE+-*/<>=!(), ", max_size=40),
    st.tuples(st.sampled_from(PIECES), st.integers(1, 300), st.sampled_from(PIECES)).map(lambda p: p[0] * p[1] + p[2]),
)


@settings(max_examples=2500, deadline=None)
@given(text=soups)
def test_any_text_is_refused_or_has_a_finite_value_or_fails(text):
    try:
        result = value(text)
    except ExpressionError as error:
        assert str(error) and str(error).isascii() and str(error).isprintable() and len(str(error)) < 80
    else:
        assert type(result) is float and math.isfinite(result)


@pytest.mark.parametrize(
    "text",
    ["x+v*" * 12 + "x", "**".join(["9"] * 50), "min(" + ",".join("x" * 240) + ")", "(" * 5_000_000, "x" * 5_000_000]
    + [
        "-" * 499 + "x",
        "not " * 124 + "x",
        "2**" * 165 + "2",
        "x<" * 249 + "x",
        "x and " * 82 + "x",
        "(" * 50 + "-" * 399,
    ]
    + ["ifelse(x," * 25 + "1" + ",ifelse(v,t,t))" * 15, "abs(" * 50 + "x" + ")" * 50, "1" * 500, "0." + "1" * 498],
)
def test_no_text_takes_long(text):
    def read_and_evaluate(text):
        try:
            expression = parse_expression(text, VALUES)
            for _ in range(12):
                expression(VALUES)
        except ExpressionError:
            pass

    assert cpu_seconds(0.02, lambda: text, read_and_evaluate) < 0.02
