"""The one record every method reads, its JSON Lines form, and the splits.

Knows no model, no tokenizer and no task: where problems come from is the business of `lib.tasks`,
and what counts as a correct answer that of `lib.answers`.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

from lib.errors import InputError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Problem:
    """One problem with its worked solution.

    id        unique within a data set, made from the problem's canonical form
    question  the text put to a model
    steps     the chain of thought, one string a step; arithmetic steps hold `<<expression=value>>`
    answer    the final answer as text, without the `####` in front
    source    the task it belongs to, such as "word_problems" (see lib.tasks)
    meta      what else the source needs, such as a modulus; JSON values only. Known everywhere are
              "canonical", the form that decides the split: problems that are the same but for the order of
              commuting operands share it; "exact_steps", true where each step has one right form; "proof", the
              kind of proof that the steps are (lib.proofs); "answer_kind", "text" where no number is expected
    """

    id: str
    question: str
    steps: tuple[str, ...]
    answer: str
    source: str
    meta: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "steps", tuple(self.steps))


def make_problem(question: str, steps: Iterable[str], answer: str, source: str, **meta) -> Problem:
    """A Problem whose id is a hash of its question, so that equal questions have equal ids in every run."""
    digest = blake2b(f"{source}\n{question}".encode(), digest_size=6).hexdigest()
    return Problem(f"{source}-{digest}", question, tuple(steps), answer, source, meta)


def canonical(problem: Problem) -> str:
    """The text that decides a problem's split: `meta["canonical"]`, else the question in lower case, blanks joined."""
    return problem.meta.get("canonical") or " ".join(problem.question.lower().split())


def split_of(problem: Problem, fractions: tuple[float, ...] = (0.8, 0.1, 0.1)) -> str:
    """The split a problem belongs to, by a cryptographic hash of its canonical form: always the same for one problem.

    A real hash, not arithmetic on the operands: (7919 a + 104729 b) mod 10 once made every test sum end in 0.
    """
    point = int.from_bytes(blake2b(canonical(problem).encode(), digest_size=8).digest(), "big") / 2**64
    for name, edge in zip(SPLITS, (fractions[0], fractions[0] + fractions[1]), strict=False):
        if point < edge:
            return name
    return SPLITS[2]


def split(problems: Iterable[Problem], fractions: tuple[float, ...] = (0.8, 0.1, 0.1)) -> dict[str, list[Problem]]:
    """Problems by split, in their order; a question seen before is dropped."""
    parts: dict[str, list[Problem]] = {name: [] for name in SPLITS}
    seen = set()
    for problem in problems:
        if problem.id not in seen:
            seen.add(problem.id)
            parts[split_of(problem, fractions)].append(problem)
    return parts


def from_record(record: object, where: str) -> Problem:
    """A Problem from a decoded JSON object; `where` ("FILE, line N") opens the sentence of any InputError."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object with the keys of a problem, found {type(record).__name__}.")
    wanted = {"id": str, "question": str, "steps": list, "answer": str, "source": str, "meta": dict}
    for key, kind in wanted.items():
        if key == "meta" and key not in record:
            continue
        if not isinstance(record.get(key), kind):
            found = f"a {type(record[key]).__name__}" if key in record else "nothing"
            raise InputError(f'{where}: "{key}" must be a {kind.__name__}, found {found}.')
    if not isinstance(record.get("meta", {}).get("canonical", ""), str):
        raise InputError(f'{where}: "canonical" in "meta" must be a string.')
    if not all(isinstance(step, str) for step in record["steps"]):
        raise InputError(f'{where}: every entry of "steps" must be a string.')
    if unknown := set(record) - set(wanted):
        raise InputError(f"{where}: unknown keys {sorted(unknown)}; a problem has {', '.join(wanted)}.")
    return Problem(**record)


def read_lines(path: str | Path) -> Iterable[tuple[str, str]]:
    """("FILE, line N", text) for every non-blank line of a UTF-8 text file; InputError where it can't be read."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}; check the path.") from None
    for number, line in enumerate(data.split(b"\n"), 1):
        where = f"{path}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8 text at byte {error.start}; save the file as UTF-8.") from None
        if text.strip():
            yield where, text.rstrip("\r")


def read_json_lines(path: str | Path) -> Iterable[tuple[str, object]]:
    """("FILE, line N", decoded value) for every line of a JSON Lines file; InputError at a line that is not JSON."""
    for where, text in read_lines(path):
        try:
            yield where, json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from None
        except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
            raise InputError(f"{where}: JSON that cannot be held ({error}).") from None


def read_json(path: str | Path) -> object:
    """The value that a JSON file holds; InputError where there is no such file or it is not JSON in UTF-8."""
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}; check the path.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: not valid JSON ({error.msg} at {place}); mend it there.") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
        raise InputError(f"{path}: JSON that cannot be held ({error}); check the file.") from None


def read_jsonl(path: str | Path) -> list[Problem]:
    """The problems of a JSON Lines file.

    Raises InputError, with file and line, at the first record that is none or has the id of another problem.
    """
    problems, questions = [], {}
    for where, record in read_json_lines(path):
        problem = from_record(record, where)
        if questions.setdefault(problem.id, problem.question) != problem.question:
            raise InputError(f"{where}: another problem has the id {problem.id!r}; every problem needs its own.")
        problems.append(problem)
    return problems


def write_jsonl(path: str | Path, records: Iterable[Problem | dict]) -> Path:
    """Write problems (or plain dicts) as JSON Lines, at once or not at all: a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:  # JSON's own escape
        for record in records:
            row = asdict(record) if isinstance(record, Problem) else record
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


def read_splits(folder: str | Path, tasks: list[str] | None = None) -> dict[str, dict[str, list[Problem]]]:
    """{task: {split: problems}} of a folder of tasks, as 01 writes it; only `tasks`, in their order, if they are named.

    Raises InputError, with the tasks that there are, for one that is not or that holds no problem to train on.
    """
    there = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
    for task in tasks or []:
        if task not in there:
            raise InputError(f"There is no task {task!r} in this run; 01_data_inspection made {', '.join(there)}.")
    found = {
        task: {split: read_jsonl(Path(folder) / task / f"{split}.jsonl") for split in SPLITS} for task in tasks or there
    }
    for task in tasks or []:
        if not found[task]["train"]:
            raise InputError(f"{task} is a set for testing alone; name a task that has problems to train on.")
    return found
