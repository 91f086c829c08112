"""The hybrid loop: what each round learns from, what is never learned, when it stops, and that a kill costs nothing."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lib import answers, evaluation, hybrid, problems, sft, synthetic
from lib.dot import config as settings
from lib.dot import generation, training
from lib.dot import model as plaid
from lib.dot.config import Config as Reasoning
from lib.errors import InputError
from lib.hybrid import Data, Plan, rounds
from lib.problems import canonical, make_problem
from lib.prompts import solution
from lib.self_training import check_apart
from lib.tasks import modular_chain, solve
from tests.test_self_training import ROOT, Recorder, killed_when, times, work

PARTS = problems.split(modular_chain.generate(240, n_operations=2, seed=3))
GOLD, VALID, HELD = PARTS["train"][:60], PARTS["valid"], [*PARTS["valid"], *PARTS["test"]]


def plan(**changed):
    """A loop of two rounds that takes seconds."""
    settings.PRESETS["tiny"] = (32, 1, 2)
    drafting = synthetic.Config(num_samples_to_generate=6, budget=240, block=60, max_new_tokens=48, device="cpu")
    made = Plan(
        2,
        sft.Config(steps=60, batch_size=16, words=True, valid_problems=4, device="cpu"),
        drafting,
        Reasoning(model="tiny", steps=30, batch_size=16, valid_problems=4, device="cpu"),
        generation.Config(steps=2, samples=2, latency_problems=1, device="cpu"),
        min_gain=-2.0,
        weight=0.1,  # the reasoner is asked, and drops nothing
    )
    return replace(made, **changed)


def data():
    return Data(GOLD, VALID, HELD)


@pytest.fixture(scope="module")
def went(tmp_path_factory):
    """(rounds, calls) of a loop undisturbed."""
    memo = Recorder(tmp_path_factory.mktemp("hybrid"))
    return list(rounds(memo, plan(), data())), memo.calls


# --- what a loop does ---


def test_a_round_writes_learns_and_is_measured(went):
    found, calls = went
    names = [call[0].__name__ for call in calls]
    one = ["train", "write", "train", "evaluate"]
    assert names == ["train", "evaluate", *one, "agree", *one]
    assert [r.number for r in found] == [0, 1, 2] and [r.counts["pool"] for r in found] == [0, 6, 12]
    exams = [call for call in calls if call[0] is generation.evaluate]
    for r, answered in zip(found, exams, strict=True):
        rows = evaluation.read_rows(answered[3] / "predictions.jsonl")
        assert answered[2] == (VALID, r.model)
        assert r.counts["accuracy"] == sum(row["correct"] for row in rows) / len(VALID)


def test_writer_and_reasoner_learn_gold_and_what_was_kept_so_far(went):
    found, calls = went
    writers = [call for call in calls if call[0] is sft.train]
    reasoners = [call for call in calls if call[0] is training.train]
    for r, call in zip(found, reasoners, strict=True):
        learned = call[2][0]
        assert learned[: len(GOLD)] == GOLD
        assert [(p.question, solution(p)) for p in learned[len(GOLD) :]] == [(e["src"], e["tgt"]) for e in r.pool]
        assert all(answers.is_verified(p, solution(p)) for p in learned)
    for before, call in zip(found, writers, strict=False):
        lessons = [*GOLD, *hybrid.learnable(before.pool, GOLD[0])]
        assert call[2][0] == synthetic.writing(lessons)
    assert [{**e, "agreement": 0} for e in found[2].pool[:6]] == [{**e, "agreement": 0} for e in found[1].pool]
    assert all("agreement" in e for e in found[2].pool[:6]) and {e["round"] for e in found[2].pool} == {1, 2}


def test_nothing_is_written_twice_and_nothing_held_out_is_learned(went):
    questions = [e["src"] for e in went[0][-1].pool] + [p.question for p in GOLD]
    assert len(set(questions)) == len(questions)
    assert not set(questions) & {p.question for p in HELD}


def test_rounds_write_with_numbers_of_their_own(went):
    seeds = [call[1].seed for call in went[1] if call[0] is synthetic.write]
    assert len(set(seeds)) == 2


@pytest.mark.parametrize("leak", ["a gold problem", "a written problem"])
def test_a_planted_leak_stops_the_loop(leak, tmp_path, monkeypatch):
    if leak == "a gold problem":
        with pytest.raises(InputError, match="validation or test holds it too"):
            Data([*GOLD, replace(HELD[0], id="other")], VALID, HELD)
        return
    kept = [{"src": HELD[-1].question, "tgt": solution(HELD[-1]), "score": 1.0}]

    def planted(config, known, held, model, out_dir):
        (Path(out_dir) / "generated.json").write_text(json.dumps(kept))
        (Path(out_dir) / "ledger.json").write_text("{}")

    monkeypatch.setattr(synthetic, "write", planted)
    with pytest.raises(InputError, match="validation or test holds it too"):
        list(rounds(Recorder(tmp_path), plan(), data()))


@pytest.mark.parametrize("verify", [True, False])
def test_a_held_out_problem_in_another_order_is_a_leak_whether_judged_or_not(verify):
    like, held = (make_problem(q, ["s"], "1 1", "addition", exact_steps=True) for q in ("1 + 1", "5 8 + 3 2"))
    held = solve(held)
    config = synthetic.Config(num_samples_to_generate=9, budget=9, verify=verify)
    records, _, fates = synthetic.sift(config, ["3 2 + 5 8\nany\n#### 1"], [like], [held])
    assert [f["fate"] for f in fates] == ["leaked"] and not records
    with pytest.raises(InputError, match="validation or test holds it too"):
        check_apart(hybrid.learnable([{"src": "3 2 + 5 8", "tgt": "any\n#### 1"}], like), [held])


def test_validation_problems_are_guarded_even_where_nothing_else_is():
    with pytest.raises(InputError, match="validation or test holds it too"):
        Data([*GOLD, VALID[0]], VALID, [])
    assert Data(GOLD, VALID, []).unseen == VALID


def test_what_was_dropped_does_not_come_back_as_new(tmp_path, monkeypatch):
    """The reasoner agrees with nothing: the second round learns nothing of the first, and knows all of it."""
    memo = Recorder(tmp_path)
    monkeypatch.setattr(answers, "is_correct", lambda problem, text: False)
    found = list(rounds(memo, plan(weight=1.0), data()))
    first, second = ({e["src"] for e in r.pool} for r in found[1:])
    assert found[2].counts["dropped"] == 6 and len(second) == 6 and not first & second
    writes = [call for call in memo.calls if call[0] is synthetic.write]
    assert [len(call[2][0]) for call in writes] == [60, 66] and writes[1][2][1] == [*VALID, *HELD]
    (agreed,) = [call for call in memo.calls if call[0] is hybrid.agree]
    assert agreed[2] == (hybrid.learnable(found[1].pool, GOLD[0]), found[1].model)


# --- agreement ---


def test_agreement_is_the_share_of_answers_that_are_the_problems(went, tmp_path):
    model, how = went[0][0].model, replace(plan().asking, samples=3)
    hybrid.agree(how, GOLD[:10], model, tmp_path)
    rows = evaluation.read_rows(tmp_path / "agreement.jsonl")
    parts = plaid.load(model, "cpu")
    for problem, row in zip(GOLD[:10], rows, strict=True):
        found, _ = generation.generate(*parts, [problem.question] * 3, how, [0, 1, 2])
        assert row == {
            "problem": problem.id,
            "agreement": sum(g.finished and answers.is_correct(problem, g.text) for g in found) / 3,
        }


def pool_of(agreements, scores):
    """A pool of gold problems as records, and a memo by which the reasoner agrees so often."""
    records = [{"src": p.question, "tgt": solution(p), "score": s} for p, s in zip(GOLD, scores, strict=False)]

    def memo(function, config, asked, model):
        assert function is hybrid.agree and [p.question for p in asked] == [r["src"] for r in records]
        folder = Path(model)
        problems.write_jsonl(folder / "agreement.jsonl", [{"agreement": a} for a in agreements])
        return folder

    return records, memo


def test_a_record_that_the_reasoner_contradicts_is_dropped(tmp_path):
    records, memo = pool_of([1.0, 0.5, 0.0, 0.0], [1.0, 1.0, 1.0, 0.8])
    how = plan(weight=0.3)
    still, dropped = hybrid.kept(memo, how, records, GOLD[0], tmp_path)
    assert dropped == 2, "scores 1, 0.85, 0.7 and 0.56 at a threshold of 0.8"
    assert still == [{**records[0], "agreement": 1.0}, {**records[1], "agreement": 0.5}]
    assert hybrid.kept(memo, replace(how, weight=0.0), records, GOLD[0], tmp_path) == (records, 0)
    assert hybrid.rescored({"score": 0.9}, 0.5, 1.0) == pytest.approx(0.45)


def test_higher_thresholds_keep_subsets(tmp_path):
    records, memo = pool_of([i / 9 for i in range(10)], [1.0 - i / 30 for i in range(10)])
    kept = []
    for threshold in (0.0, 0.3, 0.6, 0.8, 1.0):
        how = plan(weight=0.5)
        how = replace(how, drafting=replace(how.drafting, quality_threshold=threshold))
        kept.append([r["src"] for r in hybrid.kept(memo, how, records, GOLD[0], tmp_path)[0]])
    assert all(set(b) <= set(a) for a, b in zip(kept, kept[1:], strict=False)) and len(kept[0]) == 10 > len(kept[-1])


# --- when it stops ---


@pytest.mark.parametrize(
    "shares, min_gain, last", [([5, 6, 9], 0.0, 2), ([5, 4, 9], 0.0, 1), ([5, 6, 9], 0.2, 1), ([5, 1, 0], -2.0, 2)]
)
def test_it_stops_where_a_round_gained_too_little(shares, min_gain, last, tmp_path, monkeypatch):
    left = [share / 10 for share in shares]
    monkeypatch.setattr(hybrid, "reasoner", lambda *given: (tmp_path, left.pop(0)))

    def memo(function, config, *inputs):
        (tmp_path / "generated.json").write_text("[]")
        (tmp_path / "ledger.json").write_text("{}")
        return tmp_path

    found = list(rounds(memo, plan(min_gain=min_gain), data()))
    assert [r.number for r in found] == list(range(last + 1))


# --- SAMPLE_NUM and a control ---


def test_smaller_subsets_lie_in_larger_ones_and_the_seed_decides():
    small, large = (hybrid.gold_subset(GOLD, n, seed=1) for n in (10, 30))
    assert small == large[:10] and len({p.id for p in large}) == 30 and hybrid.gold_subset(GOLD, 0) == GOLD
    assert hybrid.gold_subset(GOLD, 10, seed=2) != small and hybrid.gold_subset(GOLD, 10) == GOLD[:10]
    for n in (-1, 61):
        with pytest.raises(InputError, match="SAMPLE_NUM"):
            hybrid.gold_subset(GOLD, n)


def test_without_verification_what_can_be_read_is_kept_but_no_duplicate_and_no_leak():
    wrong = replace(GOLD[1], steps=("r1 = r1",), answer="4")
    drafts = [f"{p.question}\n{solution(p)}" for p in (wrong, GOLD[0], HELD[0])] + ["nothing"]
    config = synthetic.Config(num_samples_to_generate=9, budget=9, verify=False)
    records, ledger, fates = synthetic.sift(config, drafts, GOLD[:1], HELD)
    assert [r["tgt"] for r in records] == [solution(wrong)] and ledger["verified"] == 0
    assert [f["fate"] for f in fates] == ["kept", "duplicate", "leaked", "not parsed"]
    (record,), *_ = synthetic.sift(replace(config, verify=True), drafts, GOLD[:1], HELD)
    assert record["tgt"] == solution(GOLD[1]) and record["corrected"]


def test_a_generated_file_is_read_as_drafts_and_judged_anew(tmp_path):
    path = tmp_path / "generated.json"
    wrong = {"src": GOLD[1].question, "tgt": "r1 = r1\n#### 4", "score": 1.0, "checks": {}, "answer": "4"}
    path.write_text(json.dumps([wrong, {"src": GOLD[2].question, "tgt": solution(GOLD[2])}]))
    config = synthetic.Config(num_samples_to_generate=9, budget=9)
    records, ledger, _ = synthetic.sift(config, synthetic.read_drafts(path), GOLD[:1], HELD)
    assert [r["corrected"] for r in records] == [True, False] and ledger["repaired"] == ledger["verified"] == 1
    for text in ("{", "[1]", '[{"src": "a"}]'):
        path.write_text(text)
        with pytest.raises(InputError, match="generated.json"):
            synthetic.read_drafts(path)
    with pytest.raises(InputError, match="No such file"):
        synthetic.read_drafts(tmp_path / "none.json")


def generated(path, records):
    path.write_text(json.dumps(records))
    return path


def test_generate_0_reads_no_file_and_says_so(tmp_path, capsys):
    missing = tmp_path / "none.json"
    learned, ledger = hybrid.lessons(GOLD, HELD, 20, 0, [missing], synthetic.Config())
    assert learned == hybrid.gold_subset(GOLD, 20) and ledger == {}
    (line,) = capsys.readouterr().out.splitlines()
    assert str(missing) in line and "GENERATE is 0" in line
    hybrid.lessons(GOLD, HELD, 20, 0, [], synthetic.Config())
    assert capsys.readouterr().out == ""


def test_generate_1_learns_what_is_verified_new_and_not_held_out(tmp_path):
    """More records than num_samples_to_generate, in two files; one wrong, one gold, one of the test's, one twice."""
    new = [p for p in modular_chain.generate(400, n_operations=2, seed=9) if p.id not in {q.id for q in [*GOLD, *HELD]}]
    new = [p for p in new if canonical(p) not in {canonical(q) for q in HELD}][:4]
    stated = [{"src": p.question, "tgt": solution(p)} for p in [new[0], GOLD[0], HELD[0], new[0], *new[1:3]]]
    wrong = {"src": new[3].question, "tgt": solution(replace(new[3], steps=("r9", "r9"), answer="9"))}
    paths = [generated(tmp_path / "a.json", stated), generated(tmp_path / "b.json", [wrong])]
    learned, ledger = hybrid.lessons(GOLD, HELD, 0, 1, paths, synthetic.Config(num_samples_to_generate=1))
    assert learned[: len(GOLD)] == GOLD
    assert [(p.question, p.steps, p.answer) for p in learned[len(GOLD) :]] == [
        (p.question, p.steps, p.answer) for p in new
    ]
    assert (ledger["drawn"], ledger["repaired"], ledger["duplicate"], ledger["leaked"], ledger["kept"]) == (
        7,
        1,
        2,
        1,
        4,
    )


@pytest.mark.parametrize(
    "gold, generate, paths, words",
    [(GOLD, 2, [], "0 or 1"), (GOLD, 1, [], "generate_data_path"), ([*GOLD, HELD[0]], 1, ["x"], "to be learned from")],
)
def test_lessons_that_cannot_be_are_refused(gold, generate, paths, words):
    with pytest.raises(InputError, match=words):
        hybrid.lessons(gold, HELD, 0, generate, paths, synthetic.Config())


def test_the_control_believes_as_many_of_the_same_drafts(went, tmp_path):
    first = went[0][1]
    control = hybrid.believed(Recorder(tmp_path), plan(), data(), first)
    drafts = {" ".join(row["text"].split()) for row in evaluation.read_rows(first.written / "drafts.jsonl")}
    assert control.believed and not first.believed and control.number == 1
    assert 0 < len(control.pool) == control.counts["pool"] <= len(first.pool)
    assert all(" ".join(f"{r['src']} {r['tgt']}".split()) in drafts for r in control.pool)
    wrong = [
        r for r in control.pool if (p := solve(replace(GOLD[0], question=r["src"]))) is None or solution(p) != r["tgt"]
    ]
    assert control.counts["wrong"] == len(wrong) > 0, "so small a writer makes mistakes"
    assert not {r["src"] for r in control.pool} & {p.question for p in [*GOLD, *HELD]}
    assert control.model != first.model


def test_a_loop_has_gold_of_its_task():
    assert hybrid.gold_of({"a": GOLD}, "a", 5, 1) == hybrid.gold_subset(GOLD, 5, 1)
    with pytest.raises(InputError, match="'b', which is none of the tasks a"):
        hybrid.gold_of({"a": GOLD}, "b", 5, 1)


@pytest.mark.parametrize("control, n, last", [(False, 3, None), (True, 3, 1), (True, 1, None)])
def test_a_run_is_its_rounds_and_if_asked_the_control_of_the_first(control, n, last, went, monkeypatch):
    monkeypatch.setattr(hybrid, "rounds", lambda *_: iter(went[0][:n]))
    monkeypatch.setattr(hybrid, "believed", lambda memo, plan, data, first: first.number)
    assert hybrid.run(None, plan(), data(), control) == went[0][:n] + ([last] if last else [])


@pytest.mark.parametrize("wrong", [dict(rounds=0), dict(weight=1.5), dict(tuning=sft.Config(style="answer_only"))])
def test_plans_that_cannot_work_are_refused(wrong):
    with pytest.raises(InputError):
        plan(**wrong)
    with pytest.raises(InputError, match="gold"):
        Data([], VALID, HELD)


# --- kill -9 ---

PROGRAM = """
import json, sys
from pathlib import Path
from lib import stage
from lib.hybrid import rounds
from tests.test_hybrid import data, plan
s = stage.Stage("06", "run", Path(sys.argv[1]), True)
print(json.dumps([[r.counts, str(r.model), r.pool] for r in rounds(s.memo, plan(), data())]))
"""


def start(folder):
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    environment = os.environ | {"WORKBENCH_OUTPUTS": str(folder)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_loop_killed_once_in_each_phase_ends_as_an_undisturbed_one(went, tmp_path):
    """Killed as the writer, the writing, the reasoner, its exam and its judgement begin, and in the next writer."""
    done = {}
    for begun in (3, 4, 5, 6, 7, 8):
        finished = killed_when(start(tmp_path), tmp_path, begun)
        assert all(times(path) == before for path, before in done.items()), "no finished step was done again"
        done = {path: times(path) for path in finished}
    process = start(tmp_path)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    kinds = Counter(path.name.partition("-")[0] for path in work(tmp_path))
    assert kinds == {
        **{"dot.training.train": 3, "dot.generation.evaluate": 3, "hybrid.agree": 1},
        **{"sft.train": 2, "synthetic.write": 2},
    }
    found = json.loads(output.splitlines()[-1])
    assert [[counts, pool] for counts, _, pool in found] == [[r.counts, r.pool] for r in went[0]]
    for (_, model, _), r in zip(found, went[0], strict=True):
        name = plaid.WEIGHTS
        assert (Path(model) / name).read_bytes() == (r.model / name).read_bytes()
