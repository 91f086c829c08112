"""New problems: a language model writes them with their solutions, a deterministic verifier decides which to keep.

The writer is any causal model trained on `Example`s of `writing`: asked for a problem, it writes question, chain and
answer. The verifier trusts nothing: it checks what can be checked of the text alone, repairs wrong arithmetic and
checks again. What it cannot see is whether the words of a question mean its chain; three shares of the score stand in.
"""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from lib import answers, calculator, generation
from lib.decoding_calculator import Calculator
from lib.errors import InputError
from lib.models import load_model
from lib.problems import Problem, canonical, make_problem, write_jsonl
from lib.progress import Bar
from lib.prompts import Example, solution
from lib.rft import equations
from lib.sampling import DRAWN, read_whole_lines
from lib.tasks import SOLVABLE, solve

NUMERAL = re.compile(calculator.NUMBER)
WITH_REPEAT = re.compile(rf"{answers.ANNOTATION.pattern}([$]?)(-?(?:{calculator.NUMBER}))?")
REQUEST = "Write a problem and its solution.\n"
# Counts of drafts. Of the parsed, "verified" held as they were, "repaired" after repair; each ends as one of the last.
LEDGER = ("drawn", "parsed", "verified", "repaired", "duplicate", "leaked", "below the threshold", "kept")
CHECKS = ("steps_hold", "answer_agrees", "operands_traceable", "numbers_used", "results_used")
# Numbers that a question may mean without writing their digits.
WORDS = {
    **{"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10},
    **{"eleven": 11, "twelve": 12, "half": 2, "twice": 2, "double": 2, "thrice": 3, "triple": 3, "third": 3},
    **{"quarter": 4, "dozen": 12, "week": 7, "year": 12, "hour": 60, "minute": 60, "day": 24, "percent": 100, "%": 100},
}


@dataclass(frozen=True)
class Config:
    """How to write; names as in the course fork's generator where it has them.

    num_samples_to_generate  problems to keep
    budget                   drafts to draw at most, whatever was kept
    quality_threshold        keep what scores at least this, in [0, 1]
    block                    drafts at a time
    calculator               compute results while the model writes; else what is wrong is repaired afterwards
    round                    which round of a loop this is; stands in every record
    verify                   false: whatever can be read as a problem is kept as it was written (a control)
    """

    num_samples_to_generate: int = 200
    budget: int = 2000
    quality_threshold: float = 0.8
    block: int = 256
    temperature: float = 0.8
    max_new_tokens: int = 200
    calculator: bool = False
    batch_tokens: int = 16384
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0
    round: int = 0
    verify: bool = True

    def __post_init__(self):
        if not 0 <= self.quality_threshold <= 1:
            raise InputError(f"quality_threshold must lie between 0 and 1, not {self.quality_threshold}.")
        if min(self.num_samples_to_generate, self.budget, self.block) < 1:
            raise InputError("num_samples_to_generate, budget and block must be at least 1.")
        if self.temperature <= 0:
            raise InputError("A writer that is to write different problems needs a temperature above 0.")


@dataclass(frozen=True)
class Judged:
    """A draft after verification: the problem (None where the text holds none), its score, the checks behind it.

    checks  shares in [0, 1]: steps_hold, answer_agrees, operands_traceable (to the question or an earlier result),
            numbers_used (of the question), results_used (all but the last, later on); their product is the score
    """

    problem: Problem | None
    score: float
    repaired: bool
    checks: dict[str, float]


def writing(problems: list[Problem]) -> list[Example]:
    """What a writer learns from: asked to write, it writes a question, its chain and its answer."""
    return [Example(p, REQUEST, f"{p.question}\n{solution(p)}", "writing") for p in problems]


def parse(text: str, like: Problem) -> Problem | None:
    """The problem that a text states, of the same source as `like`; None where it states none.

    Its first line is the question, then come steps, and last a line `#### answer`.
    """
    if text.count(answers.MARKER) != 1:
        return None
    question, _, rest = text.strip().partition("\n")
    steps = [line.strip() for line in answers.chain(rest).split("\n") if line.strip()]
    answer = answers.extract(rest)
    tail = rest.rpartition(answers.MARKER)[2].strip()
    if not question.strip() or not steps or answer is None or "\n" in tail or answers.MARKER in question:
        return None
    meta = {key: value for key, value in like.meta.items() if key != "canonical"}
    return make_problem(question.strip(), steps, answer, like.source, **meta)


def repair(problem: Problem) -> Problem:
    """Its chain with every result computed anew, in the annotations, in the text behind them and in what follows.

    A result that changed is replaced where later steps use it, and in the answer where the answer was the last result.
    """
    asked = {number.rstrip(".") for number in NUMERAL.findall(problem.question)}
    changed: dict[str, str] = {}  # a result as it was written -> as it should be
    results: list[tuple[str, str]] = []  # each result as it was written, as it should be

    def compute(match: re.Match) -> str:
        expression, _, stated = match[1].partition("=")
        expression = NUMERAL.sub(lambda number: changed.get(number[0], number[0]), expression)
        value = calculator.evaluate(expression).value
        if value is None:
            return match[0]
        right = stated if calculator.agrees(value, stated) else calculator.format_number(value)
        changed.pop(stated, None)  # from here on it means this result
        if right != stated and stated not in asked:
            changed[stated] = right
        results.append((stated, right))
        repeat = match[3] or ""
        if repeat.rstrip(".") == stated:
            repeat = right + repeat[len(stated) :]
        return f"<<{expression}={right}>>{match[2]}{repeat}"

    steps = [WITH_REPEAT.sub(compute, step) for step in problem.steps]
    stated, right = results[-1] if results else (problem.answer, problem.answer)
    answer = right if stated and answers.same(stated, problem.answer) else problem.answer
    return make_problem(problem.question, steps, answer, problem.source, **problem.meta)


def exact(number: str) -> Fraction | None:
    """A numeral's value; None where it is longer than the calculator reads."""
    return calculator.evaluate(number).value


def check(problem: Problem) -> dict[str, float]:
    """The shares behind a score; see Judged. A chain without annotations has no step that holds."""
    steps = answers.check_steps(problem, solution(problem))
    pairs = answers.annotations("\n".join(problem.steps))
    given = [value for text in NUMERAL.findall(problem.question) if (value := exact(text)) is not None]
    words = re.findall(r"[a-z]+|%", problem.question.lower())
    meant = {Fraction(WORDS[form]) for word in words for form in (word, word.rstrip("s")) if form in WORDS}
    operands = [list(map(exact, NUMERAL.findall(expression))) for expression, _ in pairs]
    results = [answers.number(stated) for _, stated in pairs]
    known, traced = set(given) | meant, []
    for values, result in zip(operands, results, strict=True):
        traced += [value in known for value in values]
        known.add(result)
    used, later = set(), []  # from the last step to the first
    for values, result in zip(reversed(operands), reversed(results), strict=True):
        later.append(result in used)
        used.update(values)
    return {
        "steps_hold": sum(step.ok for step in steps) / len(steps) if steps else 0.0,
        "answer_agrees": float(bool(pairs) and answers.same(pairs[-1][1] or "?", problem.answer)),
        "operands_traceable": sum(traced) / len(traced) if traced else 0.0,
        "numbers_used": sum(number in used for number in given) / len(given) if given else 1.0,
        "results_used": sum(later[1:]) / len(later[1:]) if later[1:] else 1.0,
    }


def judge(text: str, like: Problem) -> Judged:
    """Parse, check, repair where steps or answer do not hold, and check again; never raises.

    A source whose problems can be solved from their question (`tasks.solve`) is solved: steps and answer must be those,
    and repairing means to put them there. What is no question of it scores 0.
    """
    problem = parse(text, like)
    if problem is None:
        return Judged(None, 0.0, False, {})
    if (solved := solve(problem)) is None and like.source in SOLVABLE:
        return Judged(problem, 0.0, False, {"solved": 0.0})
    if solved is not None:
        right = (problem.steps, problem.answer) == (solved.steps, solved.answer)
        return Judged(solved, 1.0, not right, {"solved": 1.0})
    checks = check(problem)
    repaired = min(checks["steps_hold"], checks["answer_agrees"]) < 1
    if repaired:
        problem = repair(problem)
        checks = check(problem)
    score = 1.0
    for share in checks.values():
        score *= share
    return Judged(problem, score, repaired, checks)


def unjudged(text: str, like: Problem) -> Judged:
    """A draft believed as it stands."""
    problem = parse(text, like)
    return Judged(problem, float(problem is not None), False, {})


def sift(config: Config, drafts: list[str], known: list[Problem], held: list[Problem]):
    """(records to keep, ledger, what became of each draft), for drafts judged one after another.

    A draft is a "duplicate" where its question is that of a known problem or of an earlier draft, "leaked" where it is
    that of a problem held back (for validation or test) or, in a task that is split by its chains, where its chain is.
    A record is {"id", "src", "tgt", "answer", "score", "checks", "corrected", "round"}: what a reasoner trains on.
    """
    seen, secret = {normal(p.question) for p in known}, {normal(p.question) for p in held}
    chains = {chain_form(p) for p in held if p.meta.get("canonical")}
    ledger, records, fates = Counter(), [], []
    for text in drafts:
        judged, fate = judge(text, known[0]) if config.verify else unjudged(text, known[0]), "not parsed"
        ledger["drawn"] += 1
        if judged.problem is not None:
            holds = config.verify and min(judged.checks.get(name, 1.0) for name in ("steps_hold", "answer_agrees")) == 1
            ledger["parsed"] += 1
            ledger["verified"] += holds and not judged.repaired
            ledger["repaired"] += holds and judged.repaired
            question = normal(judged.problem.question)
            fate = "kept"
            if question in secret or chain_form(solve(judged.problem) or judged.problem) in chains:
                fate = "leaked"
            elif question in seen:
                fate = "duplicate"
            elif judged.score < config.quality_threshold:
                fate = "below the threshold"
            ledger[fate] += 1
        fates.append({"text": text, "fate": fate, "score": judged.score, "repaired": judged.repaired, **judged.checks})
        if fate == "kept":
            seen.add(question)
            records.append(record(judged, config.round))
            if len(records) == config.num_samples_to_generate:
                break
    return records, {name: ledger[name] for name in LEDGER}, fates


def why(fate: dict) -> str:
    """Why a draft (a row of drafts.jsonl) met its fate, in a few words."""
    if fate["fate"] == "not parsed":
        return "is no question with steps and one answer"
    if fate["fate"] in ("duplicate", "leaked"):
        held = "question or chain are those of a problem held back for validation or test"
        return {"duplicate": "the question is known already", "leaked": held}[fate["fate"]]
    if fate.get("solved") == 0:
        return "is no question of its task"
    low = [f"{name} {fate[name]:.2f}" for name in CHECKS if fate.get(name, 1.0) < 1]
    mended = "all steps hold"
    if fate["repaired"]:
        mended = "a result or the answer was wrong, and was computed anew"
        if "solved" in fate:
            mended = "chain or answer were not the question's, which was solved anew"
        elif min(fate["steps_hold"], fate["answer_agrees"]) < 1:
            mended = "a step or the answer does not hold, and could not be repaired"
    return "; ".join([mended, *low])


def read_drafts(path: str | Path) -> list[str]:
    """The drafts of a generated file, a JSON list of {"src", "tgt", ...}, for `sift`: nothing else in it is believed.

    Raises InputError where it can't be read as such.
    """
    try:
        texts = [(record["src"], record["tgt"]) for record in json.loads(Path(path).read_text())]
        return [" ".join(src.split()) + "\n" + tgt for src, tgt in texts]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give a generated.json of 04.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f'{path}: not a JSON list of records with texts "src" and "tgt" ({error!r}).') from None


def from_files(config: Config, paths: list, known: list[Problem], held: list[Problem]) -> tuple[list[dict], dict]:
    """(records to learn from, ledger) of generated files: their texts are judged as a writer's drafts are, all of them.

    known gives the source and what is not new. Raises InputError where a file is none.
    """
    drafts = [text for path in paths for text in read_drafts(path)]
    return sift(replace(config, num_samples_to_generate=max(1, len(drafts))), drafts, known, held)[:2]


def normal(question: str) -> str:
    """A question in lower case, its words joined by single blanks, without punctuation at its ends."""
    return " ".join(question.lower().split()).strip(".?! ")


def chain_form(problem: Problem) -> tuple[str, ...]:
    """What makes two chains the same: the equations, the operands of a sum or product of two in order of size.

    Where each step has one right form, results alone say little, and it is the form that decides the split.
    """
    if problem.meta.get("exact_steps"):
        return (canonical(problem),)
    found = []
    for equation in equations(problem, solution(problem)):
        match = re.fullmatch(r"([0-9]{1,15})([+*])([0-9]{1,15})=(.*)", equation)
        if match:
            a, b = sorted((match[1], match[3]), key=int)
            equation = f"{a}{match[2]}{b}={match[4]}"
        found.append(equation)
    return tuple(found)


def record(judged: Judged, round: int) -> dict:
    """The JSON record of a kept draft."""
    p = judged.problem
    return {
        "id": p.id,
        "src": p.question,
        "tgt": solution(p),
        "answer": p.answer,
        "score": judged.score,
        "checks": judged.checks,
        "corrected": judged.repaired,
        "round": round,
    }


def write(config: Config, known: list[Problem], held: list[Problem], model: str | Path, out_dir: str | Path) -> None:
    """Have the writer at `model` write until enough is kept or the budget ends. Leaves in `out_dir`:

    generated.json   the kept records, a JSON list
    ledger.json      how many drafts met which of LEDGER
    drafts.jsonl     every draft with its fate, score and shares
    known gives the source and what is not new; goes on where an interrupted call stopped.
    """
    out_dir = Path(out_dir)
    if (out_dir / "drafts.jsonl").exists() and not (out_dir / DRAWN).exists():
        return  # all was done but for the word that it was
    language_model, tokenizer = load_model(str(model), dtype=config.dtype, device=config.device)
    drawn = read_whole_lines(out_dir / DRAWN)
    with open(out_dir / DRAWN, "a") as file, Bar("new problems", config.num_samples_to_generate) as bar:
        records, ledger, fates = [], {}, []
        while True:
            drafts = [text for block in drawn for text in block]
            before = len(records)
            records, ledger, fates = sift(config, drafts, known, held)
            bar.update(len(records) - before, drawn=len(drafts))
            if len(records) >= config.num_samples_to_generate or len(drafts) >= config.budget:
                break
            numbers = list(range(len(drafts), min(len(drafts) + config.block, config.budget)))
            found = generation.generate(
                language_model,
                tokenizer,
                [REQUEST] * len(numbers),
                config.max_new_tokens,
                config.temperature,
                config.seed,
                numbers,
                Calculator(tokenizer) if config.calculator else None,
                batch_tokens=config.batch_tokens,
            )
            drawn.append([g.text if g.finished else "" for g in found])
            file.write(json.dumps(drawn[-1]) + "\n")
            file.flush()
            os.fsync(file.fileno())
    (out_dir / "generated.json").write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    (out_dir / "ledger.json").write_text(json.dumps(ledger, indent=1) + "\n")
    write_jsonl(out_dir / "drafts.jsonl", fates)
    (out_dir / DRAWN).unlink()
