"""What a hand-in is graded by: a plan in TOML, and how measurements become points.

title = "Unit conversion"; questions = 500; base = "units/base"      # see Plan
[[parts]]                                                            # see Part
name = "SFT"; points = 15; model = "units/sft"; form = "tagged"; accuracy = [0.2, 0.5]
[files]                                        # where `bundle` finds the parts below outputs/<run>/
"units/sft" = "03_sft/models/units_answer_only_seed0"
"""

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from lib.errors import InputError
from lib.evaluation import paired_difference
from lib.lessons.report import ExerciseResult, Measurement, PartResult, percent

PLANS = Path(__file__).parent / "plans"
FORMS = ("chat", "tagged")
PROMPT = "units/prompt.json"  # of the chat form


@dataclass(frozen=True)
class Part:
    """A part of the grade; it is one of three kinds.

    exercises                points x the mean over these exercises of the share of invariants that hold; ("*",) is all
    model, form, accuracy    points x where the accuracy on the hidden questions lies in [low, high], cut off at both
                             ends; "base" is the model without an adapter
    better_than, difference  the same of accuracy minus that of another model, on the same questions

    bonus_points are reached as the figure goes on from the band's high end to bonus_to.
    """

    name: str
    points: float
    exercises: tuple[str, ...] = ()
    model: str = ""
    form: str = "tagged"
    accuracy: tuple[float, float] | None = None
    bonus_to: float = 0.0
    bonus_points: float = 0.0
    better_than: str = ""
    difference: tuple[float, float] | None = None


@dataclass(frozen=True)
class Plan:
    """A plan.

    questions       hidden questions that each model is asked
    base            the model under the adapters: a part of the hand-in ("units/base"), a folder or a hub id
    max_parameters  a model with more, adapter included, gets nothing
    limit_mb        of a bundle's files, in MB of 2^20 bytes
    calculator      have the results of annotations computed while a model writes (lib.decoding_calculator)
    seconds         that a model may take for all questions, loading included
    memory_mb       that it may use
    files           part of the hand-in -> where `bundle` finds it below outputs/<run>/
    profile         the profile of run_all.py whose run makes the files
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    questions: int = 500
    max_parameters: int = 380_000_000
    limit_mb: float = 50.0
    base: str = "units/base"
    max_new_tokens: int = 96
    calculator: bool = False
    seconds: float = 900.0
    memory_mb: int = 6144
    profile: str = ""
    files: dict[str, str] = field(default_factory=dict)


def known_plans() -> list[str]:
    """The names of the plans that come with the lessons."""
    return sorted(path.stem for path in PLANS.glob("*.toml"))


def read_plan(name: str) -> Plan:
    """The plan of that name, or in that .toml file. Raises InputError for one that is not there or not well made."""
    path = Path(name) if name.endswith(".toml") else PLANS / f"{name}.toml"
    if not name.endswith(".toml") and name not in known_plans():
        raise InputError(f"There is no plan {name!r}; use {', '.join(known_plans())}, or a .toml file.")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read the plan {path}: {error.strerror}; check the path.") from None
    except ValueError as error:
        raise InputError(f"{path} is no TOML: {error}; mend it.") from None
    parts = found.pop("parts", [])
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise InputError(f"{path} has no parts; write [[parts]] with a name and points.")
    made = tuple(_part(_known(Part, part, f"{path}, part {k}"), f"{path}, part {k}") for k, part in enumerate(parts, 1))
    plan = Plan(name=path.stem, parts=made, **_known(Plan, found, str(path)))
    if plan.questions < 2:
        raise InputError(f"{path}: questions must be at least 2, not {plan.questions}.")
    return plan


def _known(kind: type, values: dict, where: str) -> dict:
    """The values of a table, checked against the fields of a dataclass; lists as tuples."""
    types = {f.name: f.type for f in fields(kind) if not (kind is Plan and f.name in ("name", "parts"))}
    if unknown := sorted(set(values) - set(types)):
        raise InputError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(types)}.")
    for name in types:
        if name in ("name", "points", "title") and name not in values:
            raise InputError(f"{where}: {name} is missing; write it.")
    for name, value in values.items():
        wanted = {str: str, float: (int, float), int: int, bool: bool, dict[str, str]: dict}.get(types[name], list)
        if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            raise InputError(f"{where}: {name} = {value!r} is of the wrong kind; see lib/lessons/plan.py.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _part(values: dict, where: str) -> Part:
    part = Part(**values)
    if not part.exercises and not part.model:
        raise InputError(f"{where}: neither exercises nor a model; name one.")
    if part.exercises and part.model:
        raise InputError(f"{where}: exercises and a model; make two parts of it.")
    if part.form not in FORMS:
        raise InputError(f"{where}: unknown form {part.form!r}; use {' or '.join(FORMS)}.")
    ends = part.difference if part.better_than else part.accuracy
    if part.model and (ends is None or len(ends) != 2 or not ends[0] < ends[1]):
        raise InputError(f"{where}: a model wants accuracy = [low, high], or better_than and difference = [low, high].")
    if part.bonus_points and (ends is None or part.bonus_to <= ends[1]):
        raise InputError(f"{where}: a bonus wants a model, and bonus_to above the high end of its band.")
    return part


# ----- points
def band(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, and linear between them."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


def judge(part: Part, exercises: dict[str, ExerciseResult], models: dict[tuple[str, str], Measurement]) -> PartResult:
    """The points that a part's measurements come to.

    exercises  by number, all those that the part asks for; models  by (model, form), likewise
    """
    if part.exercises:
        asked = exercises if part.exercises == ("*",) else part.exercises
        shares = [exercises[number].share for number in asked]
        line = f"{sum(share == 1 for share in shares)} of {len(shares)} exercises hold whole"
        return PartResult(part.name, part.points, part.points * sum(shares) / len(shares), (line,))
    mine = models[part.model, part.form]
    other = models[part.better_than, part.form] if part.better_than else None
    for measured in (mine, other):
        if measured is not None and measured.reason:
            return PartResult(part.name, part.points, 0.0, (f"{measured.model}: {measured.reason}",))
    if other is not None:
        value, low, high = paired_difference(list(mine.correct), list(other.correct))
        wider = (mine.n / mine.conversions) ** 0.5  # as many independent questions as conversions
        low, high = value - wider * (value - low), value + wider * (high - value)
        ends = part.difference
        line = (
            f"{part.model} minus {part.better_than}: {100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] "
            f"of accuracy, paired on {mine.n} questions"
        )
    else:
        value, (low, high), ends = mine.accuracy, mine.interval, part.accuracy
        line = f"{part.model}: {percent(value)} right [{percent(low)}, {percent(high)}] of {mine.n} questions"
    reached = part.points * band(value, *ends)
    if part.bonus_points:
        reached += part.bonus_points * band(value, ends[1], part.bonus_to)
    return PartResult(part.name, part.points, reached, (line, _worth(part, *ends)))


def _worth(part: Part, low: float, high: float) -> str:
    """What a band gives, in words."""
    text = f"nothing up to {percent(low)}, {part.points:g} from {percent(high)}, in proportion between"
    more = f"; {part.bonus_points:g} more by {percent(part.bonus_to)}" if part.bonus_points else ""
    return text + more
