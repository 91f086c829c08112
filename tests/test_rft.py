"""Rejection sampling: what is learned from, and why the rest is not, against a brute-force version."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import answers, rft, sampling
from lib.errors import InputError
from lib.problems import make_problem
from lib.prompts import solution
from lib.rft import FATES, as_problem, collect, distinct_paths, equations, fate
from lib.tasks import modular_chain
from tests.oracles import rft as oracle

many = settings(max_examples=100, deadline=None)

TRAYS = make_problem(
    "Six trays of four, five broken?", ["6*4=<<6*4=24>>24 jars.", "<<24-5=19>>19 left."], "19", "gsm8k"
)
PLAIN = make_problem("How old?", ["He is as old as she is."], "19", "gsm8k")
CHAIN = modular_chain.problem(3, (("+", 4), ("*", 2)), 5)  # r2 r4


def sample(problem, text, finished=True):
    """What `sampling.draw` says of a text."""
    return {"text": text, "finished": finished, **sampling.judge(problem, text)}


# --- paths ---


@pytest.mark.parametrize(
    "text, path",
    [
        ("6*4=<<6*4=24>>24\n<<24-5=19>>\n#### 19", ("6*4=24", "24-5=19")),
        ("<< 6 * 4 = 24 >>\n<<24-5=19>>\nThe answer is 19", ("6*4=24", "24-5=19")),
        ("<<24-5=19>>\n<<6*4=24>>\n#### 19", ("24-5=19", "6*4=24")),
        ("<<4*6=24>>\n<<24-5=19>>\n#### 19", ("4*6=24", "24-5=19")),
        ("<<6*4=24>> <<6*4=24>>\n#### 19", ("6*4=24", "6*4=24")),
        ("six by four\n#### 19", ()),
        ("<<6*4=24>>\n#### 19\n<<1+1=2>>", ("6*4=24",)),
        ("", ()),
    ],
)
def test_a_path_is_its_equations_in_order_without_blanks(text, path):
    assert equations(TRAYS, text) == path


@pytest.mark.parametrize(
    "text, path",
    [
        ("r2\nr4\n#### 4", ("r2", "r4")),
        (" r2 \n\nr4\n#### 4", ("r2", "r4")),
        ("r4\nr2\n#### 4", ("r4", "r2")),
        ("1  2\n3\nThe answer is 4", ("1 2", "3")),
        ("#### 4", ()),
    ],
)
def test_where_each_step_has_one_right_form_a_path_is_its_lines(text, path):
    assert equations(CHAIN, text) == path


# --- fates ---


@pytest.mark.parametrize(
    "text, finished, end",
    [
        ("<<6*4=24>>\n<<24-5=19>>\n#### 19", True, "kept"),
        ("<<6*4=24>>\n<<24-5=19>>\n#### 19 jars.\n", True, "kept"),
        ("<<6*4=24>>\n<<24-5=19>>\nThe answer is 19.", True, "kept"),
        ("<<6*4=24>>\n<<24-5=19>>\n#### 19", False, "unfinished"),
        ("<<6*4=24>>\n<<24-5=18>>\n#### 18", False, "unfinished"),
        ("<<6*4=24>>\n<<24-5=18>>\n#### 18", True, "wrong answer"),
        ("<<6*4=24>>\n<<24-5=19>>", True, "wrong answer"),
        ("<<6*4=25>>\n<<24-5=19>>\n#### 19", True, "broken step"),
        ("<<6*4=24>>\n<<24-5=18>>\n#### 19", True, "broken step"),
        ("6*4=24\n24-5=19\n#### 19", True, "broken step"),
        ("#### 19", True, "broken step"),
        ("<<6*4=24>>\n<<24-5=19>>\n#### 19\nNext", True, "text after the answer"),
        ("<<6*4=24>>\n<<24-5=19>>\n#### 19\n<<1+1=3>>", True, "text after the answer"),
        ("<<6*4=24>>\n<<24-5=19>>\nThe answer is 19\nNext", True, "text after the answer"),
        ("<<6*4=24>>\n#### 24\n<<24-5=19>>\n#### 19", True, "text after the answer"),
        ("<<6*4=24>>\n<<24-5=19>>\n#### 19\n#### 19", True, "text after the answer"),
        ("<<6*4=24>>\n<<24-5=19>>\n#### 19\n####", True, "text after the answer"),
    ],
)
def test_a_sample_is_learned_from_only_where_nothing_speaks_against_it(text, finished, end):
    assert fate(TRAYS, sample(TRAYS, text, finished)) == end


def test_the_reasons_are_asked_in_the_order_in_which_they_are_counted():
    assert FATES[-1] == "kept" and len(set(FATES)) == 6
    assert [fate(TRAYS, sample(TRAYS, "#### 18", False)), fate(TRAYS, sample(TRAYS, "#### 18"))] == list(FATES[:2])


# --- distinct paths ---

ONE, OTHER, THIRD = "a <<1+2=3>>\n#### 3", "b <<2+1=3>>\n#### 3", "c <<1+1=2>> <<2+1=3>>\n#### 3"


def test_order_makes_another_path_in_an_equation_and_between_equations():
    texts = ["<<1+2=3>><<3+4=7>>", "<<2+1=3>><<3+4=7>>", "<<3+4=7>><<1+2=3>>", "<<1+2=3>>", "<<1+2=3>><<1+2=3>>"]
    assert distinct_paths(TRAYS, texts) == texts


def test_of_two_texts_of_a_path_the_one_farther_from_the_others_stays_in_its_place():
    near, far = "b <<1+2=3>>\n#### 3", "quite another wording <<1 + 2 = 3>>\n#### 3"
    assert distinct_paths(TRAYS, [near, OTHER, far]) == [far, OTHER]
    assert distinct_paths(TRAYS, [far, OTHER, near]) == [far, OTHER]
    assert distinct_paths(TRAYS, [near, OTHER, far, THIRD]) == [far, OTHER, THIRD]
    assert distinct_paths(TRAYS, [near, far], known=(OTHER,)) == [far], "what is known counts as kept"


def test_of_equally_far_texts_the_first_stays():
    assert distinct_paths(TRAYS, ["x <<1+2=3>>", "y <<1+2=3>>"]) == ["x <<1+2=3>>"]
    assert distinct_paths(TRAYS, ["x <<1+2=3>>", "z <<2+1=3>>", "y <<1+2=3>>"]) == ["x <<1+2=3>>", "z <<2+1=3>>"]


def test_a_known_path_is_not_learned_twice_however_far_its_words_are():
    assert distinct_paths(TRAYS, ["quite another wording <<1+2=3>>", OTHER], known=(ONE,)) == [OTHER]
    assert distinct_paths(TRAYS, [ONE, ONE], known=(ONE,)) == []
    near, far = "aaaa <<2+1=3>>", "bbbb <<2+1=3>>"
    found = distinct_paths(TRAYS, [near, "bbbbbbbb <<1+2=3>>", far], known=("aaaa <<1+2=3>>",))
    assert found == [far], "the known text stays what others are measured against"


# --- against the oracle ---

LINES = [
    "6*4=<<6*4=24>>24 jars.",
    "There are <<6 * 4 = 24>> of them",
    "<<4*6=24>>",
    "<<24-5=19>>19 left.",
    "So <<24-5=19>>",
    "<<24-5=18>>",
    "<<6+13=19>>",
    "no sum",
    "",
]
ENDS = [
    "#### 19",
    "#### 19",
    "#### 19",
    "The answer is 19",
    "#### 19 jars",
    "#### 18",
    "",
    "#### 19\nNext",
    "#### 19\n#### 19",
    "The answer is 19\nNext",
]
texts = st.builds(
    lambda lines, end: "\n".join([*lines, end]), st.lists(st.sampled_from(LINES), max_size=4), st.sampled_from(ENDS)
)
samples = st.lists(
    st.builds(lambda text, cut: sample(TRAYS, text, not cut), texts, st.sampled_from([0, 0, 0, 1])), max_size=9
)


def learned(found, problem):
    """The steps of the training problems that were made of `problem`'s samples."""
    return [p.steps for p in found if p.id.startswith(f"{problem.id}-path")]


def lines_of(texts):
    return [tuple(line.strip() for line in oracle.before_the_answer(t).split("\n") if line.strip()) for t in texts]


@many
@given(samples, st.booleans())
@example([sample(TRAYS, "<<6*4=24>>\n<<24-5=19>>\n#### 19")] * 3, False)
def test_what_is_kept_and_what_is_counted_are_what_brute_force_says(drawn, with_gold):
    gold = [TRAYS] if with_gold else []
    found, ledger = collect([TRAYS], gold, [{TRAYS.id: drawn}], len(drawn))
    kept, counts = oracle.collect(TRAYS, solution(TRAYS) if with_gold else None, drawn)
    assert learned(found, TRAYS) == lines_of(kept) and found[: len(gold)] == gold
    assert ledger == {name: counts.get(name, 0) for name in FATES}
    assert sum(ledger.values()) == len(drawn)


@many
@given(samples)
def test_the_number_of_paths_never_falls_with_more_samples_and_its_first_ones_stay(drawn):
    paths = []
    for k in range(len(drawn) + 1):
        found, ledger = collect([TRAYS], [], [{TRAYS.id: drawn}], k)
        assert ledger["kept"] == len(found)
        paths.append([equations(TRAYS, solution(p)) for p in found])
    for fewer, more in zip(paths, paths[1:], strict=False):
        assert more[: len(fewer)] == fewer and len(set(more)) == len(more) <= len(fewer) + 1


@many
@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_pooling_is_as_if_one_model_had_drawn_all_of_it(pairs):
    first, second = ([sample(TRAYS, pair[i]) for pair in pairs] for i in (0, 1))
    pooled = collect([TRAYS], [TRAYS], [{TRAYS.id: first}, {TRAYS.id: second}], len(pairs))
    assert pooled == collect([TRAYS], [TRAYS], [{TRAYS.id: first + second}], 2 * len(pairs))


@many
@given(st.lists(texts, max_size=6))
def test_what_is_learned_is_verified_and_asks_and_answers_what_was_asked(found):
    new, _ = collect([TRAYS], [TRAYS], [{TRAYS.id: [sample(TRAYS, text) for text in found]}], len(found))
    assert new[0] == TRAYS and len({p.id for p in new}) == len(new)
    for problem in new:
        assert replace(problem, id=TRAYS.id, steps=TRAYS.steps) == TRAYS
        assert answers.is_verified(TRAYS, solution(problem))
        assert not any("####" in step or not step.strip() for step in problem.steps)


# --- a whole training set ---


def test_gold_opens_the_training_set_and_the_others_have_their_samples_alone():
    """Of a problem without gold, question and answer are taken; its own steps appear only if they were sampled."""
    other = make_problem("Three and four?", ["<<3+4=7>>"], "7", "gsm8k")
    never = make_problem("One and one?", ["<<1+1=2>>"], "2", "gsm8k")
    pool = {
        TRAYS.id: [sample(TRAYS, solution(TRAYS)), sample(TRAYS, "<<4*6=24>>\n<<24-5=19>>\n#### 19")],
        other.id: [sample(other, "<<4+3=7>>\n#### 7"), sample(other, "<<4+3=8>>\n#### 7")],
    }
    found, ledger = collect([TRAYS, other, never], [TRAYS], [pool], 2)
    assert [(p.question, p.steps, p.answer) for p in found] == [
        (TRAYS.question, TRAYS.steps, "19"),
        (TRAYS.question, ("<<4*6=24>>", "<<24-5=19>>"), "19"),
        (other.question, ("<<4+3=7>>",), "7"),
    ]
    assert ledger == dict.fromkeys(FATES, 0) | {"path known": 1, "broken step": 1, "kept": 2}


def test_the_gold_answer_is_learned_and_not_the_way_a_model_wrote_it():
    problem = make_problem("A thousand twice?", ["<<1000*2=2000>>2,000"], "2,000", "gsm8k")
    (new,) = collect([problem], [], [{problem.id: [sample(problem, "<<2*1000=2000>>\n#### $2000.00 now")]}], 1)[0]
    assert (new.answer, solution(new)) == ("2,000", "<<2*1000=2000>>\n#### 2,000")


def test_steps_are_the_lines_of_the_text_without_blank_ones():
    found = as_problem(TRAYS, " a <<6*4=24>> \n\n\tb <<24-5=19>>\nThe answer is 19", 3)
    assert found == replace(TRAYS, id=f"{TRAYS.id}-path3", steps=("a <<6*4=24>>", "b <<24-5=19>>"))


def test_a_chain_without_equations_has_one_path():
    drawn = [sample(PLAIN, text) for text in ("She is 19.\n#### 19", "As old as she.\n#### 19", "<<9+10=19>>\n#### 19")]
    found, ledger = collect([PLAIN], [], [{PLAIN.id: drawn}], 3)
    assert [p.steps for p in found] in ([("She is 19.",), ("<<9+10=19>>",)], [("As old as she.",), ("<<9+10=19>>",)])
    found, ledger = collect([PLAIN], [PLAIN], [{PLAIN.id: drawn}], 3)
    assert [p.steps for p in found] == [PLAIN.steps, ("<<9+10=19>>",)] and ledger["path known"] == 2


def test_where_each_step_has_one_right_form_there_is_one_path_and_gold_has_it():
    right, wrong = solution(CHAIN), "r3\nr4\n#### 4"
    drawn = [sample(CHAIN, text) for text in (wrong, right, f" {right}\n", "r2\nr4\nThe answer is 4", f"{right}\nr1")]
    assert [fate(CHAIN, s) for s in drawn] == ["broken step", "kept", "kept", "kept", "text after the answer"]
    for gold in ([], [CHAIN]):
        found, ledger = collect([CHAIN], gold, [{CHAIN.id: drawn}], 5)
        assert [(p.question, p.steps, p.answer) for p in found] == [(CHAIN.question, CHAIN.steps, CHAIN.answer)]
        assert (ledger["kept"], ledger["path known"]) == ((0, 3) if gold else (1, 2))


@pytest.mark.parametrize("k", [3, 100])
def test_more_samples_than_were_drawn_are_refused_with_how_many_there_are(k):
    drawn = [sample(TRAYS, "#### 19")] * 2
    pools = [{TRAYS.id: drawn, PLAIN.id: drawn * 2}, {TRAYS.id: drawn * 2}]
    with pytest.raises(InputError, match=f"The first {k} samples of each problem are asked for, but only 2 were drawn"):
        collect([TRAYS], [], pools, k)


def test_fewer_samples_than_none_are_refused():
    with pytest.raises(InputError):
        collect([TRAYS], [], [{TRAYS.id: [sample(TRAYS, "#### 19")] * 2}], -1)


def test_without_any_sample_gold_alone_is_learned():
    for pools in ([], [{}], [{TRAYS.id: []}]):
        assert collect([TRAYS, PLAIN], [PLAIN], pools, 0) == ([PLAIN], dict.fromkeys(FATES, 0))


# --- from a real drawing ---


def test_a_real_drawing_becomes_a_training_set_that_grows_with_k(sums, annotating, tmp_path):
    config = sampling.Config(n_samples=6, temperature=1.0, max_new_tokens=20, calculator=True, device="cpu")
    asked, gold = sums[::3], sums[:30:3]
    sampling.draw(config, asked, annotating, tmp_path)
    pool = sampling.read_samples(tmp_path)
    sizes = []
    for k in range(1, 7):
        found, ledger = collect(asked, gold, [pool], k)
        assert sum(ledger.values()) == k * len(asked) and found[: len(gold)] == gold
        by_question = {p.question: p for p in asked}
        for problem in found[len(gold) :]:
            own = by_question[problem.question]
            assert problem.answer == own.answer and answers.is_verified(own, solution(problem))
        sizes.append(len(found))
    assert sizes == sorted(sizes) and sizes[-1] > len(gold)
    counts = Counter((p.question, equations(p, solution(p))) for p in found)
    assert max(counts.values()) == 1, "no path of a problem is learned twice"
    assert rft.collect(asked, gold, [pool, pool], 6)[0] == found, "the same samples twice teach nothing new"


def test_text_between_two_stated_answers_is_not_learned():
    text = "<<6*4=24>>\n<<24-5=19>>\nThe answer is 19\nNow more.\nThe answer is 19"
    assert fate(TRAYS, sample(TRAYS, text)) == "text after the answer"


def test_hidden_steps_do_not_decide_what_is_learned():
    """Of an answer-only problem the question and the answer count; its own steps may be wrong or missing."""
    for problem in modular_chain.generate(5, seed=3):
        text = solution(problem)
        for steps in ((), ("r9", "r9"), problem.steps):
            hidden = replace(problem, steps=steps)
            judged = {"text": text, "finished": True, **sampling.judge(hidden, text)}
            assert fate(hidden, judged) == "kept"


KILOS = make_problem(
    "6 kg in g?", ["<<6*1000=6000>>6000 g"], "6000", "units", relative_tolerance=0.05, exact=5999.999999999999
)


@pytest.mark.parametrize(
    "text, end",
    [
        ("<<6*1000=6000>>6000 g\n<answer>6000</answer>", "kept"),
        ("<<6*1000=6000>>6000 g <answer>6000</answer>  \n", "kept"),
        ("<<6*1000=6000>>6000 g <answer>6000", "unfinished"),
        ("<<6*1000=6000>>6000 g <answer>6000</answer> g", "text after the answer"),
        ("<<6*1000=6000>>6000 g <answer>6000</answer>\nNext", "text after the answer"),
        ("<answer>6000</answer> <<6*1000=6000>> <answer>6000</answer>", "text after the answer"),
        ("<<6*1024=6144>>6144 g <answer>6144</answer>", "wrong answer"),  # within 5 %, not within 1 %
        ("<<6*1001=6006>>6006 g <answer>6006</answer>", "kept"),
        ("<<6*1000=6050>>6050 g <answer>6050</answer>", "broken step"),
        ("<answer>6000</answer>", "broken step"),
    ],
)
def test_tagged_samples_are_learned_from_only_where_they_are_whole_and_near(text, end):
    assert fate(KILOS, sample(KILOS, text), 0.01) == end


def test_without_a_narrower_bound_what_is_right_may_be_learned():
    text = "<<6*1024=6144>>6144 g <answer>6144</answer>"
    assert fate(KILOS, sample(KILOS, text)) == "kept"
    assert fate(KILOS, sample(KILOS, text), 0.03) == "kept"
    assert fate(TRAYS, sample(TRAYS, "<<6*4=24>>\n<<24-5=19>>\n#### 19"), 0.0) == "kept"


def test_records_keep_the_sources_own_answer_and_the_models_own_chain():
    text = "<<6*1001=6006>>6006 g <answer>6006</answer>"
    found, _ = collect([KILOS], [], [{KILOS.id: [sample(KILOS, text)]}], 1, 0.01)
    assert (found[0].question, found[0].answer, found[0].steps) == (KILOS.question, "6006", ("<<6*1001=6006>>6006 g",))
    chain = "<<6*1001=6006>>6006 g\n<answer>6006</answer>"
    assert rft.as_records(found, [KILOS]) == [["6 kg in g?", 5999.999999999999, chain]]
    assert rft.as_records([TRAYS], [TRAYS])[0][1] == 19.0
    said = make_problem("Who?", [], "Ann", "gsm8k")
    with pytest.raises(InputError, match="'Ann' is none"):
        rft.as_records([said], [said])


PLAN = dict(ks=[1, 2], n_samples=2, n_gold=1, n_answers=0, n_test=1, pooled=1, train=True, sampler="", chat=False)
PLAN |= dict(form="canonical", lora_rank=0, verifier_steps=1, writer_steps=1)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"train": False}, "with train: false name a sampler"),
        ({"ks": [1, 3]}, "ks must lie between 1 and n_samples = 2"),
        ({"ks": [0]}, "ks must lie between 1"),
        ({"n_gold": 0}, "n_gold must be at least 1"),
        ({"n_answers": -3}, "at least 0"),
        ({"n_test": 0}, "n_test and pooled"),
        ({"pooled": 0}, "n_test and pooled"),
        ({"writer_steps": -1}, "writer_steps must be at least 0"),
        ({"chat": True}, "chat: true needs a sampler"),
        ({"form": "t5"}, "trained in that form"),
        (
            {"form": "t5", "train": False, "sampler": "m", "chat": True},
            "trained in that form, train: false, and no chat",
        ),
        ({"lora_rank": 4}, "set verifier_steps to 0"),
        ({"form": "tagged", "sampler": "m"}, "set verifier_steps and writer_steps to 0"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_before_anything_runs(wrong, says):
    rft.check_plan(**PLAN)
    with pytest.raises(InputError, match=says):
        rft.check_plan(**{**PLAN, **wrong})


def test_a_training_set_that_holds_nothing_is_refused_with_the_fates_of_its_samples():
    wrong = sample(TRAYS, "#### 20")
    sets = {("gsm8k", 0, 1): collect([TRAYS], [], [{TRAYS.id: [wrong]}], 1)}
    with pytest.raises(InputError, match=r"nothing to learn from \(gsm8k, 0, 1\): of the samples 1 wrong answer"):
        rft.check_found(sets)
    rft.check_found({("gsm8k", 0, 1): collect([TRAYS], [TRAYS], [{}], 1)})
