"""What grading found, as text for a reader and as JSON for a machine."""

import json
import re
import textwrap
from dataclasses import asdict, dataclass, field

from lib.evaluation import wilson

WIDTH = 110
LONGEST = 300  # characters of a message that a hand-in's own code wrote


def percent(share: float) -> str:
    """0.4567 as "45.7 %"."""
    return f"{100 * share:.1f} %"


def plain(text: str) -> str:
    """A text of unknown origin on one line, without characters that steer a terminal, not too long."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * LONGEST])
    shown = re.sub(" +", " ", shown).strip()
    return shown if len(shown) <= LONGEST else shown[:LONGEST] + " ..."


@dataclass(frozen=True)
class ExerciseResult:
    """One exercise: [what should hold, does it, why not] for its invariants, of which there are `asked`.

    reason  why it could not be tried, or counts for nothing ("" otherwise)
    """

    number: str
    function: str
    notebook: str
    asked: int
    rows: tuple[tuple[str, bool, str], ...] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """The share of its invariants that hold, in [0, 1]; 0 where the first, what the function is for, does not."""
        works = not self.reason and self.rows and self.rows[0][1]
        return sum(ok for _, ok, _ in self.rows) / self.asked if works else 0.0

    def first_broken(self) -> str:
        """The first invariant that does not hold, and why; "" where all do."""
        if self.reason:
            return self.reason
        broken = next(((what, why) for what, ok, why in self.rows if not ok), ("", ""))
        return plain((" " if broken[0].endswith(".") else ": ").join(filter(None, broken)))


@dataclass(frozen=True)
class Measurement:
    """What a model answered to the hidden questions.

    correct     for each question, in their order; families, novelties  what each question is about; cells: the number
                and the pair of units it asks about, which several questions do in other words
    answered    share of outputs with an answer at all; unfinished  share that ran into the limit of tokens
    reason      why there is no measurement ("" where there is one)
    """

    model: str
    form: str
    correct: tuple[bool, ...] = ()
    families: tuple[str, ...] = ()
    novelties: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    answered: float = 0.0
    unfinished: float = 0.0
    parameters: int = 0
    seconds: float = 0.0
    reason: str = ""

    @property
    def n(self) -> int:
        return len(self.correct)

    @property
    def conversions(self) -> int:
        """How many different conversions the questions ask about: wordings of one are right or wrong together."""
        return len(set(self.cells)) or self.n

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy, as wide as if each conversion had been asked about once."""
        return wilson(self.accuracy * self.conversions, self.conversions)

    def by(self, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """(right, asked) for each name in `families` or `novelties`."""
        found = dict.fromkeys(sorted(set(names)), (0, 0))
        for name, ok in zip(names, self.correct, strict=True):
            found[name] = (found[name][0] + ok, found[name][1] + 1)
        return found


@dataclass(frozen=True)
class PartResult:
    """A part of the grade: points to be had, points reached (more than those with a bonus), and why."""

    name: str
    points: float
    reached: float
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that grading found. `text()` is for a reader, `json()` for a machine."""

    title: str
    plan: str
    source: str
    made: str
    seed: int
    parts: tuple[PartResult, ...]
    exercises: tuple[ExerciseResult, ...] = ()
    models: tuple[Measurement, ...] = ()
    only: tuple[str, ...] = ()
    settings: dict = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def points(self) -> float:
        return sum(part.points for part in self.parts)

    @property
    def reached(self) -> float:
        return sum(part.reached for part in self.parts)

    @property
    def share(self) -> float:
        return self.reached / self.points if self.points else 0.0

    def text(self, points: bool = True) -> str:
        """The report in lines; with `points` those too, and the last line says how much was reached."""
        only = f", lessons {', '.join(self.only)} only" if self.only else ""
        lines = [f"{self.title}: {plain(self.source)}", f"plan {self.plan}{only}, seed {self.seed}, {self.made}"]
        lines += [f"note: {plain(note)}" for note in self.notes]
        for title, found in (("exercises", self._exercises()), ("models", self._models())):
            lines += ["", title, *found] if found else []
        if points:
            total = f"total {100 * self.share:.0f} % ({self.reached:.1f} of {self.points:g} points)"
            lines += ["", "points", *self._parts(), "", total]
        return "\n".join(lines)

    def _exercises(self) -> list[str]:
        wide = max((len(found.function) for found in self.exercises), default=0)
        lines = []
        for found in self.exercises:
            held = 0 if found.reason else sum(ok for _, ok, _ in found.rows)
            head = f"  {found.number:<4} {found.function:<{wide}}  {held} of {found.asked}"
            broken = found.first_broken()
            lines += _wrapped(f"{head}  ", broken) if broken else [f"{head}  ok"]
        return lines

    def _models(self) -> list[str]:
        lines = []
        for found in self.models:
            head = f"  {found.model} ({found.form})  "
            if found.reason:
                lines += _wrapped(head, plain(found.reason))
                continue
            low, high = found.interval
            about = (
                f"{percent(found.accuracy)} right [{percent(low)}, {percent(high)}] of {found.n} questions about "
                f"{found.conversions} conversions, {percent(found.answered)} answered, "
                f"{percent(found.unfinished)} unfinished; {found.parameters:,} parameters, {found.seconds:.0f} s"
            )
            lines += _wrapped(head, about)
            for names in (found.families, found.novelties):
                rows = [f"{name.replace('_', ' ')} {right}/{asked}" for name, (right, asked) in found.by(names).items()]
                lines += _wrapped("    ", ", ".join(rows))
        return lines

    def _parts(self) -> list[str]:
        wide = max((len(part.name) for part in self.parts), default=0)
        lines = []
        for part in self.parts:
            lines.append(f"  {part.name:<{wide}}  {part.reached:5.1f} of {part.points:g}")
            lines += [line for reason in part.lines for line in _wrapped("    ", plain(reason))]
        return lines

    def json(self) -> str:
        """The report as a JSON object: points, parts, exercises with their rows, models, settings, versions."""
        found = {
            **{name: getattr(self, name) for name in ("title", "plan", "source", "made", "seed", "only", "seconds")},
            "total": {"reached": self.reached, "points": self.points, "share": self.share},
            "parts": [asdict(part) for part in self.parts],
            "exercises": [{**asdict(found), "share": found.share} for found in self.exercises],
            "models": [self._measured(found) for found in self.models],
            **{name: getattr(self, name) for name in ("settings", "versions", "notes")},
        }
        return json.dumps(found, indent=1) + "\n"

    @staticmethod
    def _measured(found: Measurement) -> dict:
        low, high = found.interval
        return {
            "model": found.model,
            "form": found.form,
            "reason": found.reason,
            "n": found.n,
            "conversions": found.conversions,
            "accuracy": found.accuracy if not found.reason else None,
            "ci_low": low if not found.reason else None,
            "ci_high": high if not found.reason else None,
            "answer_rate": found.answered if not found.reason else None,
            "unfinished": found.unfinished if not found.reason else None,
            "by_family": found.by(found.families),
            "by_novelty": found.by(found.novelties),
            "parameters": found.parameters,
            "seconds": found.seconds,
        }


def _wrapped(head: str, text: str) -> list[str]:
    """A text behind a head, its further lines set in under its first."""
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or [head.rstrip()]
