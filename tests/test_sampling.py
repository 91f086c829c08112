"""Samples that depend on themselves alone, and a drawing that loses next to nothing when it is cut off."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lib import answers, prompts, sampling
from lib.errors import InputError
from lib.generation import Generation
from lib.problems import make_problem, write_jsonl
from lib.prompts import Example, prompt, solution
from lib.sampling import DRAWN, Config, draw, judge, read_samples, read_whole_lines

# 12 sums of 4 samples, in micro-batches of a few.
FEW = Config(n_samples=4, temperature=1.0, max_new_tokens=20, calculator=True, batch_tokens=200, device="cpu")
KEYS = ["index", "text", "tokens", "finished", "seconds", "answer", "correct", "verified"]


def draw_in(folder, config, problems, model):
    folder.mkdir(exist_ok=True)
    draw(config, problems, model, folder)
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def without_seconds(folder):
    """All of samples.jsonl and calculator.json but what the clock says."""
    rows = lines(folder)
    for row in rows:
        row["samples"] = [{key: value for key, value in s.items() if key != "seconds"} for s in row["samples"]]
    return rows, json.loads((folder / "calculator.json").read_text())


@pytest.fixture(scope="module")
def few(sums):
    return sums[::9]


@pytest.fixture(scope="module")
def undisturbed(few, annotating, tmp_path_factory):
    return draw_in(tmp_path_factory.mktemp("undisturbed"), FEW, few, annotating)


# --- what is drawn ---


def test_a_drawing_holds_every_sample_of_every_problem_in_order_and_what_the_arbiter_says(undisturbed, few):
    rows = lines(undisturbed)
    assert [(row["id"], row["question"], row["gold"]) for row in rows] == [(p.id, p.question, p.answer) for p in few]
    for problem, row in zip(few, rows, strict=True):
        assert [s["index"] for s in row["samples"]] == [0, 1, 2, 3]
        for sample in row["samples"]:
            assert list(sample) == ["index", *(key for key in KEYS if key != "index")]
            assert sample["answer"] == answers.extract(sample["text"])
            assert sample["correct"] == answers.is_correct(problem, sample["text"])
            assert sample["verified"] == answers.is_verified(problem, sample["text"])
            assert 1 <= sample["tokens"] <= 20 and sample["seconds"] > 0
    everything = [s for row in rows for s in row["samples"]]
    for key in ("correct", "verified"):
        assert 0 < sum(s[key] for s in everything) < len(everything), f"all alike: nothing was seen of {key!r}"
    assert len({s["text"] for s in everything}) > len(few)
    assert read_samples(undisturbed) == {row["id"]: row["samples"] for row in rows}
    assert {path.name for path in undisturbed.iterdir()} == {"samples.jsonl", "calculator.json"}


def test_more_samples_of_fewer_problems_in_other_batches_begin_with_the_same_samples(
    undisturbed, few, annotating, tmp_path
):
    """A sample depends on its prompt, the seed and its number: not on n_samples, the batch or what is asked."""
    chosen = few[::-2]
    more = draw_in(tmp_path / "more", replace(FEW, n_samples=8, batch_tokens=1000), chosen, annotating)
    known = read_samples(undisturbed)
    for name, samples in read_samples(more).items():
        assert [s["text"] for s in samples[:4]] == [s["text"] for s in known[name]]
        assert [s["index"] for s in samples] == list(range(8))
    assert len({s["text"] for samples in read_samples(more).values() for s in samples[4:]}) > 4


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"temperature": 0.9}, {"top_k": 3}, {"top_p": 0.5}, {"calculator": ""}]
)
def test_another_seed_or_setting_draws_other_samples(change, undisturbed, few, annotating, tmp_path):
    other = read_samples(draw_in(tmp_path / "other", replace(FEW, **change), few, annotating))
    known = read_samples(undisturbed)
    same = sum(a["text"] == b["text"] for name in known for a, b in zip(known[name], other[name], strict=True))
    assert same < 0.9 * 4 * len(few)


def test_greedy_decoding_takes_one_sample_and_the_calculator_makes_its_steps_right(few, annotating, tmp_path):
    greedy = replace(FEW, n_samples=1, temperature=0.0)
    found = read_samples(draw_in(tmp_path / "a", greedy, few, annotating))
    again = read_samples(draw_in(tmp_path / "b", replace(greedy, seed=5, batch_tokens=1), few, annotating))
    assert {name: s[0]["text"] for name, s in found.items()} == {name: s[0]["text"] for name, s in again.items()}
    opened = [s[0] for s in found.values() if answers.annotations(s[0]["text"])]
    assert len(opened) > 8
    for sample in opened:
        expression, stated = answers.annotations(sample["text"])[0]
        assert answers.check_annotation(expression, stated).ok


def test_examples_are_asked_by_their_own_prompts_and_judged_by_their_own_problems(
    few, undisturbed, annotating, tmp_path
):
    """Asked in the words of its neighbour, a problem gets its neighbour's samples."""
    swapped = [Example(p, prompt(q), "", "swapped") for p, q in zip(few, few[1:] + few[:1], strict=True)]
    found, known = read_samples(draw_in(tmp_path / "a", FEW, swapped, annotating)), read_samples(undisturbed)
    for example, neighbour in zip(swapped, few[1:] + few[:1], strict=True):
        own = found[example.problem.id]
        assert [s["text"] for s in own] == [s["text"] for s in known[neighbour.id]]
        assert [s["correct"] for s in own] == [answers.is_correct(example.problem, s["text"]) for s in own]


def test_an_encoder_decoder_samples_too(chains, tiny_t5, tmp_path):
    config = Config(n_samples=2, temperature=1.0, max_new_tokens=5, device="cpu")
    found = read_samples(draw_in(tmp_path / "a", config, chains[:3], tiny_t5))
    assert [len(samples) for samples in found.values()] == [2, 2, 2]
    assert all(s["tokens"] <= 5 for samples in found.values() for s in samples)


def test_a_drawing_of_no_problem_is_empty(annotating, tmp_path):
    assert lines(draw_in(tmp_path / "a", FEW, [], annotating)) == []


# --- what becomes of an interruption ---


@pytest.fixture(scope="module")
def micro_batches(few, annotating, tmp_path_factory):
    """The lines of drawn.jsonl, as they are written one after another, as bytes."""
    config, asked = FEW, [Example(p, prompt(p), "", "cot") for p in few]
    requests = [(row, index) for row in range(len(few)) for index in range(4)]
    found = sampling.draw_batches(config, asked, requests, annotating, done=0)
    return [json.dumps(batch).encode() + b"\n" for batch in found]


def left_by(folder, *parts):
    folder.mkdir(exist_ok=True)
    (folder / DRAWN).write_bytes(b"".join(parts))
    return folder


class Asked(Exception):
    """The model would be loaded and asked for micro-batches from this number on."""


def test_cut_off_at_any_byte_a_drawing_keeps_every_whole_micro_batch(micro_batches, few, tmp_path, monkeypatch):
    """At every byte of the last line, and at the end of each: the next call begins with the first that is not whole."""
    assert len(micro_batches) > 5

    def draw_batches(config, asked, requests, model, done):
        raise Asked(done)
        yield

    monkeypatch.setattr(sampling, "draw_batches", draw_batches)
    last = micro_batches[-1]
    cuts = [(n, 0) for n in range(len(micro_batches))] + [(len(micro_batches) - 1, size) for size in range(len(last))]
    for n, size in cuts:
        folder = left_by(tmp_path / "cut", *micro_batches[:n], last[:size])
        with pytest.raises(Asked) as asked:
            draw(FEW, few, "no model", folder)
        assert asked.value.args == (n,)
        assert (folder / DRAWN).read_bytes() == b"".join(micro_batches[:n]), "what was broken is gone"


@pytest.mark.parametrize("n, size", [(0, 0), (0, 7), (1, 0), (3, 40), (5, 1)])
def test_a_drawing_that_was_cut_off_ends_as_an_undisturbed_one(
    n, size, micro_batches, undisturbed, few, annotating, tmp_path
):
    """The counts of the calculator add up over the interruption, too."""
    folder = left_by(tmp_path / "cut", *micro_batches[:n], micro_batches[n][:size])
    draw(FEW, few, annotating, folder)
    assert without_seconds(folder) == without_seconds(undisturbed)
    assert {path.name for path in folder.iterdir()} == {"samples.jsonl", "calculator.json"}


def test_a_drawing_that_was_all_but_finished_asks_the_model_nothing(
    micro_batches, undisturbed, few, annotating, tmp_path, monkeypatch
):
    monkeypatch.setattr(sampling.generation, "decode", None)
    folder = left_by(tmp_path / "whole", *micro_batches)
    draw(FEW, few, annotating, folder)
    assert without_seconds(folder) == without_seconds(undisturbed)


def test_a_complete_drawing_is_not_drawn_again(undisturbed, few, annotating, tmp_path, monkeypatch):
    """Killed after its last line and before its folder got its final name, a drawing is complete all the same."""
    folder = tmp_path / "complete"
    shutil.copytree(undisturbed, folder)
    monkeypatch.setattr(sampling.generation, "decode", None)
    draw(FEW, few, annotating, folder)
    assert without_seconds(folder) == without_seconds(undisturbed)


SLOW = """
import json, sys, time
from lib import generation, problems, sampling
real = generation.decode
def slow(*arguments):
    time.sleep(0.15)
    return real(*arguments)
generation.decode = slow
config, asked, model, folder = sys.argv[1:]
sampling.draw(sampling.Config(**json.loads(config)), problems.read_jsonl(asked), model, folder)
"""


def test_a_process_killed_while_drawing_loses_at_most_one_micro_batch(
    undisturbed, micro_batches, few, annotating, tmp_path
):
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-c", SLOW, json.dumps(asdict(FEW)), str(write_jsonl(tmp_path / "few.jsonl", few))]
    root = Path(sampling.__file__).parents[1]
    process = subprocess.Popen(
        [*command, str(annotating), str(folder)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        written = (folder / DRAWN).read_bytes().count(b"\n") if (folder / DRAWN).exists() else 0
        if written >= 3:
            process.kill()
            break
        time.sleep(0.02)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, error.decode()[-2000:]
    kept = len(read_whole_lines(folder / DRAWN))
    assert 3 <= kept < len(micro_batches)
    draw(FEW, few, annotating, folder)
    assert without_seconds(folder) == without_seconds(undisturbed)


@pytest.mark.parametrize(
    "content, whole, left",
    [
        (b"", [], b""),
        (b"{", [], b""),
        (b'{"a": 1}', [], b""),
        (b'{"a": 1}\n', [{"a": 1}], b'{"a": 1}\n'),
        (b'{"a": 1}\n{"a": 2', [{"a": 1}], b'{"a": 1}\n'),
        (b'{"a": 1}\n[2]\n', [{"a": 1}, [2]], b'{"a": 1}\n[2]\n'),
    ],
)
def test_whole_lines_are_read_and_the_broken_one_is_removed(content, whole, left, tmp_path):
    assert read_whole_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "a.jsonl").write_bytes(content)
    assert read_whole_lines(tmp_path / "a.jsonl") == whole
    assert (tmp_path / "a.jsonl").read_bytes() == left


# --- the calculator's counts ---


def test_the_calculators_counts_are_those_of_all_micro_batches(undisturbed, micro_batches):
    counts = json.loads((undisturbed / "calculator.json").read_text())
    parts = [json.loads(line)["calculator"] for line in micro_batches]
    for key in ("triggered", "overridden"):
        assert counts[key] == sum(part[key] for part in parts) > 0
    assert Counter(counts["failed"]) == sum((Counter(part["failed"]) for part in parts), Counter())
    assert counts["triggered"] >= counts["overridden"]


def test_without_a_calculator_nothing_is_counted(few, annotating, tmp_path):
    folder = draw_in(tmp_path / "a", replace(FEW, calculator=False, n_samples=1), few[:2], annotating)
    assert json.loads((folder / "calculator.json").read_text()) == {"triggered": 0, "overridden": 0, "failed": {}}


def test_counts_add_up_by_reason():
    counts = [
        {},
        {"triggered": 2, "overridden": 1, "failed": {"syntax": 1}},
        {"triggered": 3, "overridden": 0, "failed": {"syntax": 2, "empty": 1}},
    ]
    assert sampling.add_counts(counts) == {"triggered": 5, "overridden": 1, "failed": {"syntax": 3, "empty": 1}}
    assert sampling.add_counts([]) == {"triggered": 0, "overridden": 0, "failed": {}}


# --- judging ---

BOXES = make_problem("?", ["<<4*6=24>>24", "<<24-3=21>>21"], "21", "made_up")


@pytest.mark.parametrize(
    "text, answer, correct, verified",
    [
        (solution(BOXES), "21", True, True),
        ("<<4*6=24>>\n<<24-3=21>>\nThe answer is 21.", "21.", True, True),
        ("<<4*6=25>>\n<<24-3=21>>\n#### 21", "21", True, False),
        ("#### 21", "21", True, False),
        ("<<4*6=24>>\n<<24-3=21>>\n#### 22", "22", False, False),
        ("<<4*6=24>>\n<<24-3=21>>", None, False, False),
        ("", None, False, False),
    ],
)
def test_a_sample_is_judged_by_its_answer_and_by_its_steps(text, answer, correct, verified):
    assert judge(BOXES, text) == {"answer": answer, "correct": correct, "verified": verified}


# --- settings that cannot work ---


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"backend": "vlm"}, "Unknown backend 'vlm'; use hf or vllm"),
        ({"backend": "vllm", "calculator": True}, "vLLM samples without the calculator"),
        ({"n_samples": 0}, "n_samples and max_new_tokens must be at least 1"),
        ({"max_new_tokens": 0}, "n_samples and max_new_tokens must be at least 1"),
        ({"temperature": 0.0, "n_samples": 2}, "Greedy decoding gives one sample; use a temperature above 0"),
        ({"temperature": -0.5, "n_samples": 1}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_p": 0.0}, "top_p above 0"),
        ({"top_p": 1.5}, "top_p above 0 and at most 1"),
        ({"top_k": -3}, "top_k at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(wrong, says):
    with pytest.raises(InputError, match=says) as caught:
        replace(Config(), **wrong)
    assert "\n" not in str(caught.value)


def test_settings_at_their_limits_are_taken():
    for right in (
        {"temperature": 0.0, "n_samples": 1},
        {"backend": "vllm", "calculator": False},
        {"max_new_tokens": 1},
    ):
        assert replace(Config(), **right)


def test_a_model_that_is_not_there_is_one_sentence_and_what_was_drawn_stays(few, micro_batches, tmp_path):
    folder = left_by(tmp_path / "a", *micro_batches[:2])
    with pytest.raises(InputError, match="Cannot load the model"):
        draw(FEW, few, tmp_path / "nowhere", folder)
    assert (folder / DRAWN).read_bytes() == b"".join(micro_batches[:2])


def test_what_is_written_in_t5s_form_is_kept_so_and_as_the_arbiter_reads_it(sums, annotating, tmp_path):
    asked = [Example(p, prompts.prompt(p), prompts.solution(p), "t5") for p in sums[:3]]
    found = read_samples(draw_in(tmp_path / "a", replace(FEW, calculator=False), asked, annotating))
    assert all("written" not in s for samples in found.values() for s in samples), "this model writes no brackets"
    brackets = Generation("[ 3 + 4 = 7] 7 jars [sic].\n#### 7", 9, True, 0.1)
    line = {"rows": list(range(12)), "generations": [asdict(brackets)] * 12, "calculator": {}}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / DRAWN).write_text(json.dumps(line) + "\n")
    found = read_samples(draw_in(tmp_path / "b", replace(FEW, calculator=False, batch_tokens=9999), asked, annotating))
    for sample in (s for samples in found.values() for s in samples):
        assert sample["text"] == "<<3+4=7>> 7 jars [sic].\n#### 7" and sample["written"] == brackets.text
