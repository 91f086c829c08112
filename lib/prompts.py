"""How a problem and its solution are written for a model. Text in, text out: knows no model.

Canonical solution: one step a line, then `#### answer`. The four formats of the FlanT5 specialisation (in-context or
zero-shot, chain of thought or answer only) end in `The answer is n` instead; `lib.answers` reads both. T5's surface
form writes annotations with brackets, on one line.
"""

import math
import random
import re
from dataclasses import dataclass

from lib.errors import InputError
from lib.problems import Problem, canonical

BORDER = {"zero_shot_answer": " ", "in_context_answer": "\n"}  # as published
SURFACE_FORMS = ("canonical", "t5", "instruction", "tagged")
INSTRUCTION = "Here is a task in words. Write a response that solves it step by step."
FORMATS = ("zero_shot_answer", "zero_shot_cot", "in_context_answer", "in_context_cot")


@dataclass(frozen=True)
class Example:
    """One problem as a model meets it: what it is asked, what it is taught to write after that, and in which form."""

    problem: Problem
    prompt: str
    completion: str
    form: str


def prompt(problem: Problem) -> str:
    """What the model is given: the question and a newline, so that the prompt ends where a token ends."""
    return problem.question + "\n"


def solution(problem: Problem) -> str:
    """The canonical chain of thought: one step a line, then `#### answer`."""
    return "\n".join([*problem.steps, f"#### {problem.answer}"])


def completion(problem: Problem, style: str) -> str:
    """What the model is taught to write: "cot" the whole chain and the answer, "answer_only" the last line alone."""
    assert style in ("cot", "answer_only"), f"unknown style {style!r}: cot or answer_only"
    return solution(problem) if style == "cot" else f"#### {problem.answer}"


def examples(items: list[Problem] | list[Example], style: str = "cot") -> list[Example]:
    """Problems written in `style`; what is an Example already stays as it is."""
    return [x if isinstance(x, Example) else Example(x, prompt(x), completion(x, style), style) for x in items]


def in_surface_form(problems: list[Problem], form: str, style: str = "cot") -> list[Problem] | list[Example]:
    """Problems in one of SURFACE_FORMS, their solutions in `style` (see `completion`; T5's and instructions in chains).

    In the form "canonical" they stay as they are, since all write them so.
    """
    if form not in SURFACE_FORMS:
        raise InputError(f"Unknown form {form!r}; use {', '.join(SURFACE_FORMS)}.")
    if form in ("t5", "instruction") and style != "cot":
        raise InputError(f'The form "{form}" writes chains of thought; use the style cot with it, or another form.')
    if form == "canonical":
        return problems
    if form == "tagged":
        return [in_tagged_form(p, style) for p in problems]
    return [in_t5_form(p) if form == "t5" else as_instruction(p) for p in problems]


def as_instruction(problem: Problem) -> Example:
    """A problem in the layout that Alpaca made common and DPO-ST uses for Llama; the solution is the canonical one."""
    asked = f"{INSTRUCTION}\n\n### Instruction:\n{problem.question}\n\n### Response:\n"
    return Example(problem, asked, solution(problem), "instruction")


def in_tagged_form(problem: Problem, style: str = "cot") -> Example:
    """A problem as the course on unit conversion writes it: the bare question, then `<answer>n</answer>` after a blank.

    No chat template. The blank belongs to the completion, so that a prompt ends where a token ends.
    """
    return Example(problem, problem.question, " " + tagged(problem, style), "tagged")


def tagged(problem: Problem, style: str = "cot") -> str:
    """A solution whose answer stands in tags: the steps, one a line, and `<answer>n</answer>`; or the tags alone."""
    return "\n".join([*(problem.steps if style == "cot" else ()), f"<answer>{problem.answer}</answer>"])


# ----- the four formats
def in_format(problem: Problem, form: str, shots: list[Problem] = (), annotated: bool = True) -> Example:
    """A problem in one of FORMATS; `shots` are the worked exemplars that stand in front of an in-context prompt.

    The prompt ends and the completion begins where they do in the published templates: the completion opens with the
    blank or line break that parts them, so that an exemplar is a prompt and its completion joined, and no token
    straddles the border.
    annotated  keep `<<expression=value>>` in chains; False drops them, as the authors do with GSM8K's rationales
    """
    assert form in FORMATS, f"unknown format {form!r}: {', '.join(FORMATS)}"
    asked, written = _asked(problem, form), _written(problem, form, annotated)
    if not form.startswith("in_context"):
        return Example(problem, asked, written, form)
    before = "".join(f"{_asked(shot, form)}{_written(shot, form, annotated)}\n\n" for shot in shots)
    return Example(problem, before + asked, written, form)


def _asked(problem: Problem, form: str) -> str:
    if form.endswith("cot"):
        return f"Q: {problem.question}\nLet's think step by step"
    return f"Q: {problem.question}{BORDER[form]}A:"


def _written(problem: Problem, form: str, annotated: bool) -> str:
    if not form.endswith("cot"):
        return f" The answer is {problem.answer}"
    steps = problem.steps if annotated else map(without_annotations, problem.steps)
    return "\n" + "\n".join([*steps, f"The answer is {problem.answer}"])


def without_annotations(text: str) -> str:
    """A chain without its `<<expression=value>>`, whose value stands in the text behind it."""
    return re.sub(r"<<[^\n]*?>>", "", text)


def exemplars(problem: Problem, pool: list[Problem], n: int, seed: int = 0) -> list[Problem]:
    """`n` different problems of `pool` to show before `problem`; never the problem itself, however it is ordered.

    Which ones depends on the problem, the pool in its order and `seed`. Raises InputError where the pool is too small.
    """
    if n < 0:
        raise InputError(f"n_shots must be at least 0, not {n}.")
    rng, key = random.Random(f"{seed} {problem.id}"), canonical(problem)
    found: dict[str, Problem] = {}
    for size in (min(len(pool), 2 * n + 8), len(pool)):  # a few will do, unless many are the same problem
        drawn = [pool[i] for i in rng.sample(range(len(pool)), size)]
        found = {p.id: p for p in drawn if p.question != problem.question and canonical(p) != key}
        if len(found) >= n:
            return list(found.values())[:n]
    raise InputError(f"{n} exemplars are asked for, but the pool holds only {len(found)} other problems; give more.")


def mixture(
    problems: list[Problem],
    pool: list[Problem],
    ratios: list[float],
    n_shots: int,
    seed: int = 0,
    annotated: bool = True,
) -> list[Example]:
    """Every problem once, in one of FORMATS: their shares are `ratios` (normalised), exact but for rounding, seeded.

    The authors' own shares came from memory limits: each micro-batch had one format, and a size that fitted.
    """
    if len(ratios) != len(FORMATS) or not all(0 <= r < math.inf for r in ratios) or sum(ratios) == 0:
        raise InputError(f"ratios wants {len(FORMATS)} numbers of at least 0, for {', '.join(FORMATS)}; got {ratios}.")
    edges = [sum(ratios[: i + 1]) / sum(ratios) for i in range(len(ratios))]
    places = random.Random(seed).sample(range(len(problems)), len(problems))
    forms = {}
    for rank, place in enumerate(places):
        share = (rank + 0.5) / len(problems)
        forms[place] = next(form for form, edge in zip(FORMATS, edges, strict=True) if share < edge + 1e-12)
    return [written(problem, pool, forms[i], n_shots, seed, annotated) for i, problem in enumerate(problems)]


def written(
    problem: Problem, pool: list[Problem], form: str, n_shots: int, seed: int = 0, annotated: bool = True
) -> Example:
    """A problem in a format, with seeded exemplars where the format wants some."""
    shots = exemplars(problem, pool, n_shots, seed) if form.startswith("in_context") else []
    return in_format(problem, form, shots, annotated)


# ----- T5's surface form
# Between two operands; a sign stays with its number, and what stands behind a full stop begins anew.
OPERATOR = re.compile(r"(?:(?<=[0-9)%])[ ]*|(?<=[0-9][.]))([-+*/=])[ ]*(?=[-+0-9($\[]|[.][0-9])")
T5_ANNOTATION = re.compile(r"\[([^\]\n=]{0,128}=[^\]\n]{0,64})\]")


def in_t5_form(problem: Problem) -> Example:
    """A problem as DPO-ST writes it for T5, whose vocabulary has neither `<` nor a line break.

    The prompt is the bare question; the completion is `t5_text` of the canonical solution.
    """
    return Example(problem, problem.question, t5_text(solution(problem)), "t5")


def t5_text(text: str) -> str:
    """A solution in T5's form: `<<3*2=6>>6 pages` is `[ 3 * 2 = 6] 6 pages.`, everything on one line.

    Trivial annotations `<<6=6>>` go, operators between operands get blanks, and each line ends in a full stop, but for
    the answer. A text that is in this form already stays as it is; the published rewriting adds a stop to the answer
    the second time, and leaves every second operator of 16-3-4 without its blanks.
    """
    body, marker, answer = text.rpartition("####")
    if not marker:
        body, answer = text, ""
    body = re.sub(r"<<([0-9]+)=\1>>", "", body)
    body = re.sub(r"<<([^\n]{0,128}?)>>[ ]*", lambda found: f"[ {found[1].replace(' ', '')}] ", body)
    body = re.sub(r"([:$])(?=[0-9])", r"\1 ", body)
    lines = [OPERATOR.sub(r" \1 ", " ".join(line.split())) for line in body.split("\n")]
    lines = [line if line[-1] in ".!?" else line + "." for line in lines if line]
    return " ".join(lines + ([f"#### {' '.join(answer.split())}".strip()] if marker else []))


def canonical_text(text: str, form: str) -> str:
    """A text as the arbiter reads it: annotations in T5's form, [ 6 * 4 = 24], become <<6*4=24>>."""
    if form != "t5":
        return text
    return T5_ANNOTATION.sub(lambda found: f"<<{found[1].replace(' ', '')}>>", text)


# ----- chat
CHAT_DATE = "26 Jul 2024"  # for templates that tell the model the date (Llama 3 names this one where it knows none)
# The common form of a chat template, for tokenizers that bring none.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def conversations(
    problems: list[Problem],
    pool: list[Problem],
    tokenizer,
    system: str,
    n_shots: int,
    seed: int = 0,
    form: str = "canonical",
) -> list[Example]:
    """Problems as `chat`, each with its own seeded exemplars of `pool` in front."""
    return [chat(p, tokenizer, system, exemplars(p, pool, n_shots, seed), form) for p in problems]


def with_conversations(mixed: list[Example], share: float, pool: list[Problem], *more) -> list[Example]:
    """`mixed`, but that a share of them, evenly spread, are written as `conversations(..., pool, *more)` instead."""
    if not 0 <= share <= 1:
        raise InputError(f"chat_share must lie between 0 and 1, not {share}.")
    chosen = {i for i in range(len(mixed)) if int((i + 1) * share) > int(i * share)}
    return [conversations([e.problem], pool, *more)[0] if i in chosen else e for i, e in enumerate(mixed)]


def chat(problem: Problem, tokenizer, system: str = "", shots: list[Problem] = (), form: str = "canonical") -> Example:
    """A problem as a conversation in the model's own chat template, ending where the assistant is to speak.

    system  what the model is told first; shots  worked problems, each a turn of user and assistant
    form    how solutions are written: "tagged", or as everywhere
    Raises InputError for a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path} has no chat template; use an instruct model, or another format.")
    write = tagged if form == "tagged" else solution
    messages = [{"role": "system", "content": system}] if system else []
    for shot in shots:
        messages += [{"role": "user", "content": shot.question}, {"role": "assistant", "content": write(shot)}]
    messages.append({"role": "user", "content": problem.question})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=CHAT_DATE)
    return Example(problem, text, write(problem), "chat")
