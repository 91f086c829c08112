"""The self-training loop on a model that learns sums: what each step gets, from whom, and after a kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lib import answers, dpo, evaluation, models, preferences, prompts, sampling, sft, stage
from lib.errors import InputError
from lib.preferences import Opinion
from lib.problems import make_problem
from lib.prompts import in_surface_form, solution
from lib.self_training import Data, Plan, check_apart, check_model, check_sizes, ledger, reseeded, rounds
from tests.conftest import small_llama, with_tokenizer

ROOT = Path(__file__).parents[1]
DRAWING = sampling.Config(4, 1.0, max_new_tokens=16, calculator=True, device="cpu")
TUNING = sft.Config(steps=40, batch_size=32, learning_rate=2e-2, warmup_steps=10, valid_problems=4, device="cpu")
PREFERRING = dpo.Config(steps=4, batch_size=8, learning_rate=1e-3, warmup_steps=1, n_watched=8, device="cpu")


def all_sums():  # a subprocess has no fixture
    pairs = [(a, b) for a in range(10) for b in range(10)]
    return [make_problem(f"{a} + {b} ?", [f"<<{a}+{b}={a + b}>>"], str(a + b), "sums") for a, b in pairs]


def data():
    """20 sums with solutions, 20 more with their answers alone, 10 to watch; the rest is held out, as those are."""
    known = all_sums()
    hidden = [replace(p, steps=()) for p in known[20:40]]
    return Data(known[:20], known[:20] + hidden, known[40:50], known[40:])


def plan(base, method="dpo_self_training", **changed):
    """Two rounds of a few steps from the untrained model at `base`."""
    choosing = preferences.Config(max_similarity=0.9)
    labelling = replace(DRAWING, n_samples=3, temperature=1.5, seed=1)
    made = Plan(
        method, 2, replace(TUNING, model=str(base)), PREFERRING, choosing, DRAWING, labelling, watched_share=0.2
    )
    return replace(made, **changed)


class Recorder:
    """A memo that does everything anew and writes down what it did."""

    def __init__(self, directory):
        self.directory, self.calls = Path(directory), []

    def __call__(self, function, config, *inputs):
        place = self.directory / f"{len(self.calls)}-{function.__module__}.{function.__name__}"
        place.mkdir(parents=True)
        function(config, *inputs, place)
        self.calls.append((function, config, inputs, place))
        return place


def weights(model):
    """The bytes of a model's weights."""
    return (Path(model) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The directory of an untrained tiny Llama for sums."""
    texts = [prompts.prompt(p) + solution(p) for p in all_sums()]
    return with_tokenizer(small_llama(texts), texts, tmp_path_factory.mktemp("base"))


def went(directory, how, what):
    """(calls, rounds) of a loop."""
    memo = Recorder(directory)
    return list(rounds(memo, how, what)), memo.calls


@pytest.fixture(scope="module")
def preferred(base, tmp_path_factory):
    return went(tmp_path_factory.mktemp("dpo"), plan(base), data())


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    return went(tmp_path_factory.mktemp("plain"), plan(base, "self_training"), data())


# --- problems that must not be learned from ---

ONE = make_problem("How many are 3 + 4 ?", ["<<3+4=7>>"], "7", "sums", canonical="3+4")


@pytest.mark.parametrize(
    "other",
    [
        replace(ONE, question="5 + 5 ?", meta={}),  # the same id
        replace(ONE, id="a", meta={}),  # the same question
        replace(ONE, id="a", question="\nHow MANY  are 3 + 4\t?", meta={"canonical": "another"}),
        replace(ONE, id="a", question="4 + 3 ?"),  # the same but for the order of its operands
    ],
)
@pytest.mark.parametrize("place", ["gold", "asked"])
def test_a_problem_that_is_held_out_in_any_dress_is_refused(other, place):
    others = all_sums()[:2]
    for problems, held_out in (([ONE], [other]), ([other], [ONE])):
        wanted = f"^Problem {problems[0].id} is to be learned from, but validation or test holds it too .*split"
        with pytest.raises(InputError, match=wanted) as caught:
            check_apart([*others, *problems], held_out)
        assert "\n" not in str(caught.value)
        gold, asked = (problems, others + problems) if place == "gold" else ([], others + problems)
        with pytest.raises(InputError, match=wanted):
            Data(gold, asked, [], held_out)
        with pytest.raises(InputError, match=wanted):
            Data(in_surface_form(gold, "t5"), in_surface_form(asked, "t5"), [], held_out)


def test_other_problems_are_apart():
    known = all_sums()
    check_apart(known[:50], known[50:])
    check_apart([], known)
    check_apart(known, [])
    assert Data(known[:5], known[:9], known[9:], known[9:]).asked == known[:9]


def test_what_has_a_solution_must_be_asked_too():
    known = all_sums()
    with pytest.raises(InputError, match="^2 problems with solutions are not among those to be asked; ask them too.$"):
        Data(known[:5], known[:3], [], [])


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"method": "rlhf"}, "^Unknown method 'rlhf'; use self_training or dpo_self_training.$"),
        ({"iterations": 0}, "^iterations must be at least 1, not 0.$"),
        ({"epochs": -0.5}, "^epochs must be at least 0, not -0.5.$"),
        ({"watched_share": 0.6}, "^watched_share must lie between 0 and 0.5, not 0.6.$"),
        ({"tuning": replace(TUNING, style="answer_only")}, "leave the style of its fine-tuning at cot"),
        (
            {"tuning": replace(TUNING, lora_rank=2), "preferring": replace(PREFERRING, lora_rank=2)},
            "set dpo_lora_rank to",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_one_sentence(wrong, says):
    with pytest.raises(InputError, match=says):
        plan("base", **wrong)


SIZES = dict(n_gold=1, n_answers=0, n_pair_samples=1, n_valid=1, n_test=1, pass_samples=4, pass_ks=[1, 4])


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"n_gold": 0}, "n_gold must be at least 1 and n_answers at least 0, not 0 and 0"),
        ({"n_answers": -1}, "n_gold must be at least 1 and n_answers at least 0, not 1 and -1"),
        ({"n_pair_samples": 0}, "n_pair_samples must be at least 1, not 0"),
        ({"n_valid": 0}, "n_valid and n_test must be at least 1, not 0 and 1"),
        ({"n_test": 0}, "n_valid and n_test must be at least 1, not 1 and 0"),
        ({"pass_ks": [1, 5]}, "pass_ks must lie between 1 and pass_samples = 4, not "),
        ({"pass_ks": [0]}, "pass_ks must lie between 1 and pass_samples = 4, not "),
    ],
)
def test_sizes_that_make_no_loop_are_refused_before_anything_runs(wrong, says):
    check_sizes(**SIZES)
    with pytest.raises(InputError, match=says):
        check_sizes(**SIZES | wrong)


def test_what_a_kind_of_model_cannot_do_is_refused_before_anything_runs(tiny_t5, tiny_llama, monkeypatch):
    for model in ("flan_t5_tiny", "llama_tiny", str(tiny_t5), str(tiny_llama)):
        check_model(model, "sigmoid", "hf")
    check_model(str(tiny_llama), "kto", "hf")
    for model in ("flan_t5_tiny", str(tiny_t5)):
        with pytest.raises(InputError, match="Loss kto is for causal models"):
            check_model(model, "kto", "hf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="vLLM, which is not installed"):
        check_model("llama_tiny", "sigmoid", "vllm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(InputError, match="vLLM is for causal models"):
        check_model("flan_t5_tiny", "sigmoid", "vllm")


@pytest.mark.parametrize("method", ["self_training", "dpo_self_training"])
def test_a_loop_looks_again_at_what_it_is_about_to_learn(method, base, tmp_path):
    given = data()
    object.__setattr__(given, "held_out", given.asked)  # as no Data lets itself be made
    with pytest.raises(InputError, match="holds it too"):
        went(tmp_path, plan(base, method), given)
    assert len(list(tmp_path.iterdir())) == 2, "stopped before it learned"


# --- the order of the steps ---


def test_with_dpo_each_round_compares_prefers_draws_and_tunes_the_base_model_again(base, preferred):
    found, calls = preferred
    how, given = plan(base), data()
    places = [place for *_, place in calls]
    expected = [(sft.train, how.tuning, (given.gold, given.valid))]
    for i in (1, 2):
        before, start = found[i - 1].model, 4 * i - 3
        expected += [
            (sampling.draw, reseeded(how.pairing, i), (given.asked, before)),
            (dpo.train, how.preferring, (found[i].pairs, found[i].watched, before)),
            (sampling.draw, reseeded(how.labelling, i), (given.asked, places[start + 1] / "model")),
            (sft.train, how.tuning, (found[i].learned, given.valid)),
        ]
    assert [call[:3] for call in calls] == expected and how.tuning.model == str(base)
    assert [r.model for r in found] == [places[i] / "model" for i in (0, 4, 8)], "what is delivered is fine-tuned"
    assert [r.tuned for r in found] == [None, places[2], places[6]]
    assert [r.start for r in found] == [None, found[0].model, found[1].model]
    assert [reseeded(how.pairing, i).seed for i in (1, 2, 3)] == [0, 1000, 2000], "no round repeats another's luck"
    assert [r.compared for r in found] == [(), (places[1],), (places[1], places[5])]
    assert [r.drawn for r in found] == [(), (places[3],), (places[3], places[7])]
    assert [(r.method, r.iteration) for r in found] == [("dpo_self_training", i) for i in range(3)]


def test_without_dpo_the_fine_tuned_model_itself_writes_what_is_learned(base, plain):
    found, calls = plain
    how, given = plan(base), data()
    assert [call[:3] for call in calls] == [
        (sft.train, how.tuning, (given.gold, given.valid)),
        (sampling.draw, how.labelling, (given.asked, found[0].model)),
        (sft.train, how.tuning, (found[1].learned, given.valid)),
        (sampling.draw, replace(how.labelling, seed=1001), (given.asked, found[1].model)),
        (sft.train, how.tuning, (found[2].learned, given.valid)),
    ]
    for r in found:
        assert (r.method, r.tuned, r.compared, r.pairs, r.watched) == ("self_training", None, (), [], [])
    assert [r.drawn for r in found[1:]] == [(calls[1][3],), (calls[1][3], calls[3][3])]


@pytest.mark.parametrize("fixture", ["preferred", "plain"])
def test_every_fine_tuning_starts_from_the_base_model_and_not_from_another_round(fixture, base, request, tmp_path):
    """The last round's model is the one that its training set makes of the base model alone."""
    found, _ = request.getfixturevalue(fixture)
    sft.train(replace(TUNING, model=str(base)), found[-1].learned, data().valid, tmp_path)
    assert weights(tmp_path / "model") == weights(found[-1].model)
    assert len({weights(r.model) for r in found}) == 3, "each round learns something else"


# --- what is learned ---


def test_samples_of_all_rounds_are_what_pairs_and_solutions_are_made_of(base, preferred):
    found, _ = preferred
    how, asked = plan(base), prompts.examples(data().asked)
    gold = {p.id: solution(p) for p in data().gold}
    tokenizer = models.load_tokenizer(str(found[0].model))
    for r in found[1:]:
        compared, drawn = ([sampling.read_samples(folder) for folder in part] for part in (r.compared, r.drawn))
        pairs = preferences.make_pairs(how.choosing, asked, gold, compared, tokenizer)
        assert (r.pairs, r.watched) == preferences.held_out_share(pairs, 0.2)
        learned, counts = preferences.labels(how.choosing, asked, gold, drawn, tokenizer)
        assert r.learned == learned
        samples = 3 * 40 * r.iteration
        assert r.counts == {"questions": 40, "samples": samples, **counts, "pairs": len(r.pairs)}
        assert r.pairs and r.watched and counts["labels"], "this test is of something"
    assert found[0].learned == prompts.examples(data().gold) and found[0].counts == {"questions": 40}
    assert len(found[2].pairs + found[2].watched) > len(found[1].pairs + found[1].watched)


@pytest.mark.parametrize("fixture", ["preferred", "plain"])
def test_everything_learned_was_asked_and_nothing_of_it_is_held_out(fixture, request):
    found, _ = request.getfixturevalue(fixture)
    asked, held_out = ({p.id for p in part} for part in (data().asked, data().held_out))
    questions = {p.question for p in data().held_out}
    for r in found:
        used = {x.problem for x in r.pairs + r.watched} | {e.problem.id for e in r.learned}
        assert used <= asked and not used & held_out
        assert not {x.prompt.strip() for x in [*r.pairs, *r.watched, *r.learned]} & questions
        assert not {x.problem for x in r.pairs} & {x.problem for x in r.watched}
        assert all(answers.is_correct(e.problem, e.completion) for e in r.learned)
        assert {e.problem.id for e in r.learned} >= {p.id for p in data().gold}
    hidden = {p.id for p in data().asked[20:]}
    assert any(e.problem.id in hidden for e in found[-1].learned), "answers alone are used too"


def test_with_kto_opinions_are_learned_in_place_of_pairs(base, tmp_path):
    how = plan(base, iterations=1, preferring=replace(PREFERRING, loss="kto", steps=2))
    found, calls = went(tmp_path, how, data())
    assert {type(x) for x in found[1].pairs + found[1].watched} == {Opinion}
    assert calls[2][2] == (found[1].pairs, found[1].watched, found[0].model)
    assert found[1].counts["pairs"] == len(found[1].pairs)


def test_the_same_loop_again_ends_in_the_same_bits(base, preferred, tmp_path):
    found, _ = preferred
    again, _ = went(tmp_path, plan(base), data())
    for one, other in zip(found, again, strict=True):
        assert (one.pairs, one.watched, one.learned, one.counts) == (
            other.pairs,
            other.watched,
            other.learned,
            other.counts,
        )
        assert weights(one.model) == weights(other.model)


def test_epochs_are_passes_over_what_a_round_learns(base, tmp_path):
    how = plan(base, "self_training", iterations=1, epochs=60.0)
    found, calls = went(tmp_path, how, data())
    tuned = [call[1] for call in calls if call[0] is sft.train]
    steps = [round(60 * len(r.learned) / 32) for r in found]
    assert tuned == [replace(how.tuning, steps=n, warmup_steps=n // 10) for n in steps] and 38 == steps[0] < steps[1]
    assert replace(how, epochs=0.01).tuning_on([0]).steps == 1
    assert replace(how, epochs=0.0).tuning_on(found[1].learned) == how.tuning


def test_the_ledger_has_a_row_for_each_model_of_a_round_measured_on_the_same_problems(preferred, plain, tmp_path):
    asking = evaluation.Config(16, calculator=True, latency_problems=1, device="cpu")
    memo, asked, ks, rows = Recorder(tmp_path), prompts.examples(all_sums()[:12]), [1, 2, 4], []
    first, last, other = preferred[0][0], preferred[0][2], plain[0][1]
    for r in (first, last, other):
        rows += ledger(memo, r, asking, DRAWING, ks, asked)
    assert [call[:3] for call in memo.calls] == [
        call
        for model in (first.model, last.tuned / "model", last.model, other.model)
        for call in ((evaluation.evaluate, asking, (asked, model)), (sampling.draw, DRAWING, (asked, model)))
    ]
    for row, answered, drawn in zip(rows, memo.calls[::2], memo.calls[1::2], strict=True):
        predictions = evaluation.read_rows(answered[3] / "predictions.jsonl")
        assert row["accuracy"] == sum(p["correct"] for p in predictions) / 12
        assert {k: row[f"pass@{k}"] for k in ks} == evaluation.mean_pass_at_k(drawn[3], ks)
    assert [(row["method"], row["model"], row["round"]) for row in rows] == [
        ("dpo_self_training", "sft-0", 0),
        ("dpo_self_training", "dpo-2", 1.5),
        ("dpo_self_training", "sft-2", 2),
        ("self_training", "sft-1", 1),
    ]
    assert rows[2].items() >= last.counts.items() and "pairs" not in rows[1]


# --- kill -9 ---

PROGRAM = """
import json, sys
from pathlib import Path
from lib import stage
from lib.self_training import rounds
from tests.test_self_training import data, plan
base, out = sys.argv[1:]
s = stage.Stage("07", "run", Path(out), True)
print(json.dumps([[r.counts, str(r.model)] for r in rounds(s.memo, plan(base), data())]))
"""


def start(base, folder):
    """The loop in a process of its own, with the memo of a stage below `folder`."""
    command = [sys.executable, "-c", PROGRAM, str(base), str(folder)]
    environment = os.environ | {"WORKBENCH_OUTPUTS": str(folder)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def work(folder):
    """What the memo holds, finished or begun."""
    return sorted(path for path in (folder / "run" / "memo").glob("*") if path.is_dir())


def times(folder):
    """Inode and time of change of a folder and of all it holds."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in [folder, *sorted(folder.rglob("*"))]}


def killed_when(process, folder, begun):
    """Kill a process once so many steps have begun in the memo of `folder`; the finished ones."""
    while process.poll() is None and len(work(folder)) < begun:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1]
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return [path for path in work(folder) if path.suffix != ".partial"]


@pytest.mark.parametrize("begun", [6, 7])
def test_a_killed_loop_does_no_finished_step_again_and_ends_as_an_undisturbed_one(begun, base, preferred, tmp_path):
    """Killed when the 6th step began, the first of round 2, and in its DPO."""
    done = killed_when(start(base, tmp_path), tmp_path, begun)
    assert begun - 1 <= len(done) < 9, "it was killed on its way"
    before = {path: times(path) for path in done}
    process = start(base, tmp_path)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert {path: times(path) for path in done} == before
    kinds = Counter(path.name.partition("-")[0] for path in work(tmp_path))
    assert kinds == {"sft.train": 3, "dpo.train": 2, "sampling.draw": 4}
    found = json.loads(output.splitlines()[-1])
    assert [counts for counts, _ in found] == [r.counts for r in preferred[0]]
    assert [weights(model) for _, model in found] == [weights(r.model) for r in preferred[0]]


def test_a_finished_loop_does_nothing_again(base, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "OUTPUTS", tmp_path)
    s, how = stage.Stage("07", "run", tmp_path, True), plan(base, "self_training", iterations=1)
    first = list(rounds(s.memo, how, data()))
    before = {path: times(path) for path in work(tmp_path)}
    assert list(rounds(s.memo, how, data())) == first and {path: times(path) for path in work(tmp_path)} == before
    more = list(rounds(s.memo, replace(how, iterations=2), data()))
    assert more[:2] == first and {path: times(path) for path in before} == before, "a round more takes a round more"
    assert len(work(tmp_path)) == len(before) + 2
