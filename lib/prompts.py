"""How a problem and its solution are written for a model. Text in, text out: knows no tokenizer and no model.

Canonical solution: one step a line, then `#### answer`.
"""

from lib.problems import Problem


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
