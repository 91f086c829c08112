"""Published test sets of short word problems, read from local files: SVAMP, ASDiv, MultiArith. Never trained on.

Each problem comes with its equation instead of a worked solution; here it becomes one annotated step.
"""

import json
import re
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from lib import calculator
from lib.errors import InputError
from lib.problems import Problem, make_problem

NAMES = ("svamp", "asdiv", "multiarith")


def read(name: str, path: str | Path) -> list[Problem]:
    """The problems of a published file: SVAMP.json, MultiArith.json or ASDiv.xml. A repeated question is read once.

    Problems of ASDiv with several answers ("9 (apples); 3 (pears)") are left out.

    Raises InputError where the file is not of that form, with the place.
    """
    assert name in NAMES, f"unknown benchmark {name!r}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {error}; check the path.") from None
    rows = _asdiv_rows(text, path) if name == "asdiv" else _json_rows(text, path)
    keys = {
        "svamp": ("Body", "Question", "Equation", "Answer"),
        "asdiv": ("Body", "Question", "Formula", "Answer"),
        "multiarith": (None, "sQuestion", "lEquations", "lSolutions"),
    }[name]
    problems: dict[str, Problem] = {}
    for number, row in enumerate(rows, 1):
        try:
            body, question, equation, answer = (row[key] if key else "" for key in keys)
            stop = "." if body.strip() and body.strip()[-1] not in ".?!" else ""  # SVAMP's bodies often lack it
            if name == "multiarith":
                (equation,), (answer,) = equation, answer
            if not isinstance(answer, (int, float, str)) or isinstance(answer, bool) or not str(answer).strip():
                raise ValueError("no answer")
            if ";" in str(answer):
                continue  # several answers
            new = _problem(name, f"{body.strip()}{stop} {question.strip()}".strip(), equation, str(answer))
        except (KeyError, TypeError, ValueError, AttributeError):
            wanted = ", ".join(filter(None, keys))
            raise InputError(f"{path}, problem {number}: a problem of {name} has {wanted}.") from None
        problems.setdefault(new.id, new)
    if not problems:
        raise InputError(f"{path}: holds no problem.")
    return list(problems.values())


def _problem(name: str, question: str, equation: str, answer: str) -> Problem:
    answer = re.sub(r" *\(.*\)$", "", answer.strip())  # ASDiv: "9 (apples)"
    if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", answer):
        answer = calculator.format_number(Fraction(answer), decimals=6)
    expression = re.sub(r"^X=|(?<!X)=.*$| ", "", equation.strip())  # MultiArith: X=..., ASDiv: ...=9
    expression = re.sub(r"([0-9])\.0(?![0-9])", r"\1", expression)
    value = calculator.evaluate(expression).value
    steps = [f"<<{expression}={answer}>>"] if value is not None and calculator.agrees(value, answer) else []
    return make_problem(" ".join(question.split()), steps, answer, name)


def _json_rows(text: str, path) -> list:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({str(error)[:200]}).") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a JSON list of problems.")
    return rows


def _asdiv_rows(text: str, path) -> list[dict]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: declares XML entities, which no ASDiv file needs; refused.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: not valid XML ({error}).") from None
    return [{child.tag: child.text or "" for child in problem} for problem in root.iter("Problem")]
