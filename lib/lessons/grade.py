"""Grade a hand-in: its exercises and its models, each in a sandbox, against questions that nobody has seen.

Nothing of the hand-in is trusted: its code runs in the sandbox alone, what is right is asked of `lib.answers` here,
and the answers to the hidden questions never go where a hand-in's code or weights are.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lib import answers
from lib.errors import InputError
from lib.lessons import archive, handin, sandbox
from lib.lessons import check as lessons
from lib.lessons.handin import Exercise
from lib.lessons.plan import PROMPT, Plan, judge, known_plans, read_plan
from lib.lessons.report import ExerciseResult, Measurement, Report
from lib.problems import Problem
from lib.progress import Bar
from lib.tasks import units

AT_ONCE = 2  # jobs, each with limits of its own
PACKAGES = ("reasoning-workbench", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


def grade(
    source: Path,
    plan: str | None = None,
    seed: int | None = None,
    trusted: bool = False,
    only: list[str] | None = None,
    base: str = "",
    device: str = "cpu",
    questions: int | None = None,
) -> Report:
    """The Report on a hand-in, a folder or a zip.

    plan       its name or .toml file; else the one that the hand-in's bundle.json names, else "lessons"
    seed       of the hidden questions; drawn anew where there is none, and shown in the report
    trusted    run without isolation, on machines that offer none: for one's own work only
    only       lessons ("03"): exercises and models of others neither count nor run
    base       the base model, a folder or a hub id, in place of the plan's
    questions  how many hidden questions, in place of the plan's number
    Raises InputError for a hand-in that cannot be read, an unknown plan or lesson, a machine without isolation.
    """
    started, made = time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if not trusted and (reason := sandbox.missing()):
        raise InputError(f"{reason} Grade on another machine or, your own work only, with --trust.")
    seed = int.from_bytes(os.urandom(8)) if seed is None else seed
    known = handin.known_exercises()
    with tempfile.TemporaryDirectory(prefix="handin-") as place:
        folder = Path(place).resolve()
        limit = max(read_plan(name).limit_mb for name in ([plan] if plan else known_plans()))
        archive.unpack(Path(source), folder, limit)
        manifest = handin.read_manifest(folder)
        plan = read_plan(plan or _named(manifest))
        notes = [f"handed in by {manifest['name']}"] if manifest.get("name") else []
        if manifest.get("plan", plan.name) != plan.name:
            notes.append(f"bundle.json names the plan {manifest['plan']}")
        plan, wanted, numbers = _restricted(plan, known, only)
        asked = units.hidden(questions or plan.questions, seed) if wanted else []
        jobs = {("exercise", n): _exercise_job(folder, known, n) for n in numbers}
        jobs |= {("model", *key): _answer_job(folder, plan, *key, base, device, asked) for key in wanted}
        outcomes = {
            key: replace(outcome, reason=outcome.reason.replace(f"{folder}/", ""))
            for key, outcome in _run(jobs, plan, device, trusted).items()
        }
        exercises = {n: _tried(known[n], jobs["exercise", n], outcomes.get(("exercise", n))) for n in numbers}
        models = {k: _measured(k, jobs["model", *k], outcomes.get(("model", *k)), asked, plan) for k in wanted}
    return Report(
        title=plan.title,
        plan=plan.name,
        source=Path(source).name or str(source),
        made=made,
        seed=seed,
        parts=tuple(judge(part, exercises, models) for part in plan.parts),
        exercises=tuple(exercises.values()),
        models=tuple(models.values()),
        only=tuple(_lessons(known, only)) if only else (),
        settings={"device": device, "dtype": "float32", "base": base or plan.base, "isolated": not trusted},
        versions=package_versions(),
        notes=tuple(notes),
        seconds=time.monotonic() - started,
    )


def package_versions() -> dict[str, str]:
    """What graded: the versions of this package and of those that models run on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


# ----- what is to be done
def _named(manifest: dict) -> str:
    """The plan that a hand-in names: one that comes with the lessons, never a file."""
    name = manifest.get("plan") or "lessons"
    if name not in known_plans():
        raise InputError(f"bundle.json names a plan {name[:40]!r} that is not known; choose one with --plan.")
    return name


def _lessons(known: dict[str, Exercise], only: list[str]) -> list[str]:
    """Lessons as their two digits. Raises InputError for one that there is not."""
    there = sorted({exercise.lesson for exercise in known.values()})
    found = [lesson.partition("_")[0].zfill(2) for lesson in only]
    if unknown := [lesson for lesson, two in zip(only, found, strict=True) if two not in there]:
        raise InputError(f"There is no lesson {unknown[0]!r}; use {', '.join(there)}.")
    return found


def _restricted(plan: Plan, known: dict[str, Exercise], only: list[str] | None):
    """(plan, models, exercises): the parts that count, the (model, form) to ask and the exercises to try."""
    chosen = set(_lessons(known, only)) if only else {exercise.lesson for exercise in known.values()}
    parts, models, numbers = [], [], []
    for part in plan.parts:
        if part.model:
            made_in = plan.files.get(PROMPT if part.model == "base" else part.model, "")[:2]
            if not only or made_in in chosen:
                parts.append(part)
                models += [(model, part.form) for model in (part.model, part.better_than) if model]
            continue
        if unknown := [n for n in part.exercises if n != "*" and n not in known]:
            raise InputError(f"The plan {plan.name} asks for exercise {unknown[0]}, which no notebook has; mend it.")
        asked = known if part.exercises == ("*",) else part.exercises
        if asked := tuple(n for n in asked if known[n].lesson in chosen):
            parts.append(replace(part, exercises=asked))
            numbers += asked
    if not parts:
        raise InputError(f"The plan {plan.name} has nothing in lesson {', '.join(only)}; leave out --only.")
    return replace(plan, parts=tuple(parts)), list(dict.fromkeys(models)), list(dict.fromkeys(numbers))


def _exercise_job(folder: Path, known: dict[str, Exercise], number: str) -> dict | str:
    """The job for an exercise, or why there is none."""
    exercise = known[number]
    if not (folder / exercise.notebook).is_file():
        return f"{exercise.notebook} is not in the hand-in."
    try:
        cells = handin.read_cells(folder / exercise.notebook)
    except InputError:
        return f"{exercise.notebook} is no notebook that can be read."
    beside = [other.function for other in known.values() if other.notebook == exercise.notebook]
    return handin.exercise_job(cells, exercise, beside)


def _answer_job(
    folder: Path, plan: Plan, model: str, form: str, base: str, device: str, asked: list[Problem]
) -> dict | str:
    """The job that has a model answer, questions alone, or why there is none."""
    named = base or plan.base
    handed = not base and plan.base.startswith("units/")  # else it is ours, and must be there
    under = folder / plan.base if handed else base_folder(named)
    adapter = None if model in ("base", plan.base) else folder / model
    job = {"system": "", "shots": []}
    if handed and not under.is_dir():
        return f"{plan.base} is not in the hand-in."
    if adapter is not None and not adapter.is_dir():
        return f"{model} is not in the hand-in."
    if form == "chat":
        if not (folder / PROMPT).is_file():
            return f"{PROMPT} is not in the hand-in."
        try:
            job["system"], job["shots"] = handin.read_prompt(folder / PROMPT)
        except InputError as error:
            return str(error).replace(f"{folder}/", "")
    return {
        "kind": "answer",
        "base": str(under),
        "adapter": None if adapter is None else str(adapter),
        "prompts": None,
        "form": form,
        **job,
        "questions": [problem.question for problem in asked],
        "max_new_tokens": plan.max_new_tokens,
        "calculator": plan.calculator,
        "max_parameters": plan.max_parameters,
        "dtype": "float32",
        "device": device,
        "seed": 0,
    }


def base_folder(name: str) -> Path:
    """The folder of a model by folder or hub id, fetched where it is not there yet. Raises InputError without one."""
    if Path(name).is_dir():
        return Path(name).resolve()
    from transformers.utils import cached_file

    found, reason = {}, ""
    for part in archive.BASE:
        try:
            found[part] = cached_file(name, part)
        except (OSError, ValueError) as error:  # some of the files are optional, and some models lack them
            reason = reason or str(error).strip().partition("\n")[0][:120]
    if not {"config.json", "model.safetensors", "tokenizer.json"} <= set(found):
        raise InputError(f"Cannot find the base model {name!r} ({reason}); give --base FOLDER, or a hub id.")
    return Path(found["config.json"]).absolute().parent


def _readable(job: dict) -> list[Path]:
    """What a job may read beside lib: its model's folders, with the blobs that a hub's folder links to."""
    folders = [Path(job[key]) for key in ("base", "adapter") if job.get(key)]
    return [folder.parents[1] if folder.parent.name == "snapshots" else folder for folder in folders]


# ----- done
def _run(jobs: dict, plan: Plan, device: str, trusted: bool) -> dict:
    """The sandbox's outcome of every job that there is."""
    found = {}
    ready = {key: job for key, job in jobs.items() if isinstance(job, dict)}
    pool, waiting = ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)), {}
    asking = replace(sandbox.Limits(), seconds=plan.seconds, memory_mb=plan.memory_mb)
    try:
        for key in sorted(ready, key=lambda key: key[0] != "model"):  # models first: they take longest
            limits, place = (asking, device) if key[0] == "model" else (sandbox.Limits(), "cpu")
            waiting[pool.submit(sandbox.run, ready[key], limits, _readable(ready[key]), place, trusted)] = key
        with Bar("grading", len(ready)) as bar:
            for done in as_completed(waiting):
                found[waiting[done]] = done.result()
                bar.update(last=" ".join(waiting[done][1:]))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def _tried(exercise: Exercise, job: dict | str, outcome) -> ExerciseResult:
    """What came of an exercise's job. Rows count where they name an invariant of ours, each once."""
    invariants = [(i.__doc__ or i.__name__).strip() for i in lessons.find(exercise.number).invariants]
    result = ExerciseResult(exercise.number, exercise.function, exercise.notebook, len(invariants))
    if isinstance(job, str):
        return replace(result, reason=job)
    value, seconds = outcome.value, outcome.seconds
    if value is None or outcome.verdict != "done":
        return replace(result, reason=outcome.reason or f"The sandbox says {outcome.verdict}.", seconds=seconds)
    rows = value.get("rows")
    fits = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 3 and [type(x) for x in row] == [str, bool, str] for row in rows
    )
    held = [row[0] for row in rows if row[1]] if fits else []
    if not fits or len(set(held)) < len(held) or not set(held) <= set(invariants):
        return replace(result, reason="The reply is not what a check says.", seconds=seconds)
    if value.get("tampered"):
        return replace(result, reason=outcome.reason, seconds=seconds)
    return replace(result, rows=tuple(map(tuple, rows)), seconds=seconds)


def _measured(key: tuple[str, str], job: dict | str, outcome, asked: list[Problem], plan: Plan) -> Measurement:
    """What a model's answers are worth, judged here."""
    found = Measurement(*key)
    if isinstance(job, str):
        return replace(found, reason=job)
    value = outcome.value
    if value is None or outcome.verdict != "done":
        return replace(found, reason=outcome.reason or f"The sandbox says {outcome.verdict}.", seconds=outcome.seconds)
    texts, finished, parameters = (value.get(name) for name in ("texts", "finished", "parameters"))
    fits = [isinstance(texts, list), isinstance(finished, list), type(parameters) is int]
    if not all(fits) or not len(texts) == len(finished) == len(asked) or not all(type(t) is str for t in texts):
        return replace(found, reason="The reply is not an answer to every question.", seconds=outcome.seconds)
    if parameters > plan.max_parameters:
        reason = f"It has {parameters:,} parameters, more than the {plan.max_parameters:,} that the plan allows."
        return replace(found, reason=reason, parameters=parameters, seconds=outcome.seconds)
    return replace(
        found,
        correct=tuple(answers.is_correct(p, text) for p, text in zip(asked, texts, strict=True)),
        families=tuple(p.meta["family"] for p in asked),
        novelties=tuple(p.meta["novelty"] for p in asked),
        cells=tuple(p.meta["canonical"] for p in asked),
        answered=sum(answers.extract(text) is not None for text in texts) / len(asked),
        unfinished=sum(not end for end in finished) / len(asked),
        parameters=parameters,
        seconds=float(value.get("seconds") or outcome.seconds),
    )
