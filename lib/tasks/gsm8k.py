"""GSM8K: grade-school word problems by people, from a local file or, where there is a network, from the hub.

Three local forms are read. JSON Lines, as published:

    {"question": "Ben packs ...", "answer": "Six trays hold 6*4=<<6*4=24>>24 jars.\\n... <<24-5=19>>19 ...\\n#### 19"}

the GSM8k-Aug text form, one problem a line: `question||<<6*4=24>> <<24-5=19>> #### 19`; and Coconut's preprocessing of
that, one JSON list of {"question", "steps": ["<<6*4=24>>", "<<24-5=19>>"], "answer": "19"}. Never train on one and test
on the other: every validation question of GSM8k-Aug is in GSM8K's training file.
"""

import re
from pathlib import Path

from lib.errors import InputError
from lib.problems import Problem, make_problem, read_json, read_json_lines, read_lines

HUB = "openai/gsm8k"
PIECE = re.compile(r"<<.*?>>|\S+")  # a step with a blank inside is one piece
HALF = re.compile("[\ud800-\udfff]")  # half a character, which JSON can hold and no file can


def parse_record(record: object, where: str) -> Problem:
    """A Problem from one published JSON object; InputError without question, answer text or its `####` line."""
    if not (isinstance(record, dict) and all(isinstance(record.get(k), str) for k in ("question", "answer"))):
        raise InputError(f'{where}: expected an object with the texts "question" and "answer".')
    chain, marker, answer = record["answer"].rpartition("####")
    if not marker or not answer.strip():
        raise InputError(f'{where}: the answer has no final line "#### number".')
    steps = [line.strip() for line in chain.split("\n") if line.strip()]
    return make_problem(record["question"].strip(), steps, answer.strip(), "gsm8k")


def parse_aug(line: str, where: str) -> Problem:
    """A Problem from one line of the GSM8k-Aug form."""
    question, bar, rest = line.partition("||")
    chain, marker, answer = rest.rpartition("####")
    if not bar or not marker or not answer.strip():
        raise InputError(f"{where}: expected `question||steps #### answer`.")
    return make_problem(question.strip(), PIECE.findall(chain), answer.strip(), "gsm8k")


def parse_steps(record: object, where: str) -> Problem:
    """A Problem from one object of Coconut's preprocessed form, whose steps are a list already."""
    question, steps, answer = (
        map(record.get, ("question", "steps", "answer")) if isinstance(record, dict) else [None] * 3
    )
    texts = [question, answer, *steps] if isinstance(steps, list) else [None]
    if not all(isinstance(text, str) and text.strip() and not HALF.search(text) for text in texts):
        raise InputError(f'{where}: expected the texts "question" and "answer" and a list of texts "steps"; mend it.')
    return make_problem(question.strip(), [step.strip() for step in steps], answer.strip(), "gsm8k")


def read(path: str | Path) -> list[Problem]:
    """The problems of one local file: `.txt` is the GSM8k-Aug form, a list in `.json` Coconut's, else JSON Lines."""
    _, first = next(iter(read_lines(path)), ("", ""))
    if Path(path).suffix == ".json" and first.lstrip().startswith("["):
        records = read_json(path)
        return [parse_steps(record, f"{path}, item {number}") for number, record in enumerate(records, 1)]
    if Path(path).suffix == ".txt":
        return [parse_aug(line, where) for where, line in read_lines(path)]
    return [parse_record(record, where) for where, record in read_json_lines(path)]


def load(path: str, data_dir: Path) -> dict[str, list[Problem]]:
    """Problems by published split, from the first of: `path` (unless empty), `data_dir`/gsm8k, the hub.

    A file holds one split ("train"); a folder holds train.jsonl and may hold valid.jsonl and test.jsonl.
    """
    local = Path(path) if path else data_dir / "gsm8k"
    if local.is_dir():
        files = {name: local / f"{name}.jsonl" for name in ("train", "valid", "test")}
        found = {name: read(file) for name, file in files.items() if file.exists()}
        if "train" in found:
            return found
        raise InputError(f"{local} holds no train.jsonl; put GSM8K's JSON Lines files there.")
    if path:
        return {"train": read(path)}
    return from_hub(local)


def from_hub(local: Path) -> dict[str, list[Problem]]:
    """GSM8K's two splits through `datasets`; InputError that names the local place where it cannot be reached."""
    from datasets import load_dataset

    try:
        data = load_dataset(HUB, "main")
    except Exception as error:  # the hub client raises many kinds for "no network"; the reason stands in the sentence
        raise InputError(
            f"GSM8K is neither at {local} nor to be had from the hub ({type(error).__name__}); "
            f"put its train.jsonl (and test.jsonl) into {local}."
        ) from error
    return {
        name: [parse_record(row, f"{HUB} {name}, row {i}") for i, row in enumerate(data[name])]
        for name in ("train", "test")
    }
