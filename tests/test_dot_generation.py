"""Answers of a diffusion model: how a canvas is read, votes, what an answer depends on, what is counted."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lib import answers, evaluation
from lib.dot import generation
from lib.dot import model as plaid
from lib.dot.config import SAMPLERS, Config
from lib.errors import InputError
from lib.generation import Generation
from lib.problems import make_problem
from lib.tasks import modular_chain
from lib.tokenization import build_word_tokenizer

HOW = generation.Config(steps=6, device="cpu")
LOSSES = ("cross_entropy", "masked")
UNSEEN = [p.question for p in modular_chain.generate(16, n_operations=3)]  # longer than any that was learned


@pytest.fixture(scope="module")
def learned(denoiser):
    """loss -> (model, tokenizer, its config, canvas) of a model that knows its chains."""
    loaded = {}

    def load(loss="cross_entropy"):
        if loss not in loaded:
            loaded[loss] = plaid.load(denoiser(loss), "cpu")
        return loaded[loss]

    return load


def told(found):
    return [(g.text, g.tokens, g.finished) for g in found]


# --- a canvas as an answer ---


@pytest.fixture(scope="module")
def words():
    return build_word_tokenizer(["r1 r2\n#### -12 3", "#### 07"])


def canvas_of(tokenizer, text, ending):
    return tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.convert_tokens_to_ids(t) for t in ending]


@pytest.mark.parametrize(
    "text, ending, expected, finished, answer",
    [
        ("r1\n#### 3", ["<eos>"], "r1\n#### 3", True, "3"),
        ("r1\n#### 3", ["<eos>", "<pad>", "<pad>"], "r1\n#### 3", True, "3"),
        ("r1\n#### 3", ["<eos>", " 3", " r2", "<eos>"], "r1\n#### 3", True, "3"),
        ("r1\n#### -12", ["<eos>"], "r1\n#### -12", True, "-12"),
        ("#### 07", ["<eos>"], "#### 07", True, "07"),
        ("r1\n#### 3", [], "r1\n#### 3", False, "3"),
        ("r1\n#### 3", ["<pad>", "<pad>"], "r1\n#### 3", False, "3"),
        ("r1\n#### 3", [" 3", " r2"], "r1\n#### 3 3 r2", False, "3 3 r2"),
        ("r1", ["<eos>", "<pad>"], "r1", True, None),
        ("", ["<eos>", "<pad>"], "", True, None),
        ("", ["<pad>", "<pad>"], "", False, None),
    ],
)
def test_a_canvas_is_read_up_to_its_end(text, ending, expected, finished, answer, words):
    """Its length is what was computed, whether it is used or not."""
    ids = canvas_of(words, text, ending)
    found = generation.read(words, ids, 0.5)
    assert found == Generation(expected, len(ids), finished, 0.5)
    assert answers.extract(found.text) == answer
    assert words.unk_token_id not in ids


@pytest.mark.parametrize("gold, text, right", [("-12", "#### -12", True), ("12", "#### -12", False), ("3", "", False)])
def test_numbers_of_a_canvas_are_judged_with_their_signs(gold, text, right, words):
    found = generation.read(words, canvas_of(words, text, ["<eos>"]), 0.0)
    assert answers.is_correct(make_problem("?", [], gold, "mine"), found.text) == right


def test_a_model_that_never_ends_fills_its_canvas(learned, short_chains):
    """And nothing breaks: the text is all of it, and is not finished."""
    model, tokenizer, trained, canvas = learned()
    bias, end = model.model.output_linear.bias, tokenizer.eos_token_id
    with torch.no_grad():
        bias[end] -= 1000
        found, _ = generation.generate(model, tokenizer, trained, canvas, [p.question for p in short_chains[:4]], HOW)
        bias[end] += 1000
    assert all(not g.finished and g.tokens == canvas for g in found)
    with torch.no_grad():
        bias[end] += 1000
        found, _ = generation.generate(model, tokenizer, trained, canvas, [p.question for p in short_chains[:4]], HOW)
        bias[end] -= 1000
    assert told(found) == [("", canvas, True)] * 4


# --- votes ---


@pytest.mark.parametrize(
    "written, chosen",
    [
        (["#### 3", "#### 4", "#### 4"], 1),
        (["#### 3", "#### 4", "#### 4", "#### 3"], 0),  # as many: the one that came first
        (["#### 4", "#### 3", "#### 3", "#### 4"], 0),
        (["none", "#### 4", "#### 3"], 1),
        (["#### 3*", "#### 3*", "#### 4"], 2),  # * has no end: no vote
        (["none", "nothing", "none"], 0),
        (["#### 3*", "none", "#### 4*"], 0),
        (["#### 4", "#### 3.0", "#### 3"], 1),  # equal numbers vote together
    ],
)
def test_the_answer_that_most_samples_state_wins(written, chosen, monkeypatch):
    k, asked = len(written), []

    def drawn(model, tokenizer, trained, canvas, questions, how, indices):
        asked.append((questions, indices))
        found = [
            Generation(text.rstrip("*"), 10 + i, not text.endswith("*"), float(i)) for i, text in enumerate(written)
        ]
        return found * 2, list(range(1, 2 * k + 1))

    monkeypatch.setattr(generation, "generate", drawn)
    problems = [make_problem(q, [], "3", "mine") for q in ("a ?", "b ?")]
    found, passes = generation.voted(None, None, None, 7, problems, replace(HOW, samples=k))
    assert asked == [(["a ?"] * k + ["b ?"] * k, list(range(k)) * 2)]
    for g in found:
        assert g.text == written[chosen].rstrip("*") and g.finished != written[chosen].endswith("*")
        assert g.tokens == sum(10 + i for i in range(k)) and g.seconds == sum(range(k)), "at the cost of all"
    assert passes == [sum(range(1, k + 1)), sum(range(k + 1, 2 * k + 1))]


@pytest.mark.parametrize("loss", LOSSES)
def test_votes_are_the_votes_of_single_samples(loss, learned, short_chains):
    """Each sample is what it is when asked for alone; a second time is the same."""
    model, tokenizer, trained, canvas = learned(loss)
    how = replace(HOW, steps=2, temperature=3.0, samples=3)
    found, passes = generation.voted(model, tokenizer, trained, canvas, short_chains[:12], how)
    texts = set()
    for problem, g, made in zip(short_chains[:12], found, passes, strict=True):
        drawn = [generation.generate(model, tokenizer, trained, canvas, [problem.question], how, [i]) for i in range(3)]
        texts |= {(problem.id, one[0].text) for one, _ in drawn}
        stated = [answers.extract(one[0].text) if one[0].finished else None for one, _ in drawn]
        counts = Counter(answer for answer in stated if answer is not None)
        best = max(range(3), key=lambda i: (counts.get(stated[i], 0), -i))
        assert g.text == drawn[best][0][0].text and g.tokens == 3 * canvas
        assert made == sum(calls[0] for _, calls in drawn) == 6
    assert len(texts) > 12, "samples differ"
    again, _ = generation.voted(model, tokenizer, trained, canvas, short_chains[:12], how)
    assert told(again) == told(found)


# --- what an answer depends on ---


@pytest.mark.parametrize("sampler", [*SAMPLERS, "unmask", "unmask, drawn"])
def test_an_answer_depends_on_its_question_and_nobody_elses(sampler, learned, short_chains):
    masked = sampler.startswith("unmask")
    model, tokenizer, trained, canvas = learned("masked" if masked else "cross_entropy")
    how = replace(HOW, steps=5) if masked else replace(HOW, steps=5, sampler=sampler)
    how = replace(how, temperature=2.0 if sampler == "unmask, drawn" else 1.0)
    questions = [*(p.question for p in short_chains[14:26]), *UNSEEN]  # of three lengths

    def ask(asked, batch_tokens=16384, **more):
        given = replace(how, batch_tokens=batch_tokens, **more)
        found, calls = generation.generate(model, tokenizer, trained, canvas, asked, given)
        assert calls == [5] * len(asked)
        return dict(zip(asked, told(found), strict=True))

    expected = ask(questions)
    assert len({text for text, _, _ in expected.values()}) > 8, "outputs differ"
    assert ask(questions, 1) == expected, "one by one"
    assert ask(questions, 50) == ask(questions[::-1], 70) == expected
    assert ask(questions[11:14]) == {q: expected[q] for q in questions[11:14]}
    if sampler not in ("unmask", "release_x0_iteration"):
        hot = [ask(questions, seed=seed, temperature=4.0) for seed in (0, 1)]
        assert hot[0] != hot[1] and hot[0] == ask(questions, seed=0, temperature=4.0), "another seed, another sample"


@pytest.mark.parametrize("loss", LOSSES)
def test_a_sample_is_a_function_of_question_seed_and_index(loss, learned):
    model, tokenizer, trained, canvas = learned(loss)
    how, question = replace(HOW, steps=3, sampler="ancestral", temperature=3.0), UNSEEN[0]

    def ask(indices, seed=0):
        given = [question] * len(indices), replace(how, seed=seed), indices
        return [g.text for g in generation.generate(model, tokenizer, trained, canvas, *given)[0]]

    eight = ask(list(range(8)))
    assert len(set(eight)) > 1 and ask([5, 2]) == [eight[5], eight[2]] and ask([3, 3]) == [eight[3]] * 2
    assert ask(list(range(8)), seed=1) != eight
    assert ask([0]) == [g.text for g in generation.generate(model, tokenizer, trained, canvas, [question], how)[0]]


def test_noise_is_the_samples_own():
    def noise(questions, indices, seed=0):
        return generation.Noise(questions, seed, indices, (3, 4), "cpu")

    every = torch.arange(2)
    first = noise(["a", "b"], [0, 0])(-1, every)
    assert first.shape == (2, 3, 4) and first.dtype == torch.float32
    assert torch.equal(noise(["b", "a"], [0, 0])(-1, every), first.flip(0))
    for other in (noise(["a", "b"], [1, 1]), noise(["c", "d"], [0, 0]), noise(["a", "b"], [0, 0], 1)):
        assert (other(-1, every) != first).all()
    some = noise(["a", "b"], [0, 0])
    some(-1, every), some(0, torch.tensor([0]))
    own = noise(["b"], [0])
    own(-1, torch.tensor([0]))
    assert torch.equal(some(1, torch.tensor([1])), own(0, torch.tensor([0]))), "who is not asked uses none up"
    uniform = noise(["a", "b"], [0, 0]).uniform()
    assert uniform.shape == (2, 3) and (uniform >= 0).all() and (uniform < 1).all()


@pytest.mark.parametrize("was", [True, False])
def test_a_model_goes_on_as_it_was(was, learned, short_chains):
    model, tokenizer, trained, canvas = learned()
    model.train(was)
    before = torch.get_rng_state()
    generation.generate(model, tokenizer, trained, canvas, [short_chains[0].question], HOW)
    assert model.training == was and torch.equal(torch.get_rng_state(), before)
    model.eval()


# --- what happens on the way ---


def test_rows_leave_when_they_are_sure_and_their_calls_are_counted(learned, short_chains):
    model, tokenizer, trained, canvas = learned()
    questions, how = [*UNSEEN[:12], *(p.question for p in short_chains[20:24])], replace(HOW, steps=12)
    history = [[] for _ in questions]

    def watch(step, places, ids, sure):
        for place, tokens, likely in zip(places, ids.tolist(), sure.tolist(), strict=True):
            history[place].append((step.t, tokens, min(likely)))

    whole, all_calls = generation.generate(model, tokenizer, trained, canvas, questions, how, watch=watch)
    assert all_calls == [12] * 16 and all(len(row) == 12 for row in history)
    assert [t for t, _, _ in history[0]] == pytest.approx([1 - i / 12 for i in range(12)])
    worked, guess = [], model.guess
    model.guess = lambda z, *given: worked.append(len(z)) or guess(z, *given)
    try:
        found, calls = generation.generate(
            model, tokenizer, trained, canvas, questions, replace(how, leave_at=0.9, batch_tokens=120)
        )
    finally:
        del model.guess
    for g, made, row in zip(found, calls, history, strict=True):
        met = [i + 1 for i, (_, _, least) in enumerate(row) if least >= 0.9]
        assert made == (met[0] if met else 12)
        assert g.text == generation.read(tokenizer, row[made - 1][1], 0).text
    assert len(set(calls)) > 2 and min(calls) < 12
    assert sum(worked) == sum(calls), "nobody is computed after having left"


def test_a_canvas_of_another_size_is_asked_for(learned, short_chains):
    model, tokenizer, trained, canvas = learned()
    questions = [p.question for p in short_chains[:5]]
    for n in (1, canvas, canvas + 3):
        found, _ = generation.generate(model, tokenizer, trained, canvas, questions, replace(HOW, canvas=n))
        assert {g.tokens for g in found} == {n}
    right = sum(answers.is_correct(p, g.text) for p, g in zip(short_chains, found, strict=False))
    assert right >= 4, "a little more room does no harm"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "question", ["", " ", "what is this ?", "v3 + x9 ?", "数学 🧮\n\n", "<eos> <pad> <sep>", "\x00", "v1 + n2 " * 200]
)
def test_any_question_gets_some_answer(question, loss, learned, short_chains):
    """Of unknown words, of none, and longer than any in training; it does not change its neighbour's."""
    model, tokenizer, trained, canvas = learned(loss)
    known = short_chains[0].question
    (alone,), _ = generation.generate(model, tokenizer, trained, canvas, [known], HOW)
    (found, other), _ = generation.generate(model, tokenizer, trained, canvas, [question, known], HOW)
    assert found.tokens == canvas and isinstance(found.text, str)
    assert other.text == alone.text


def test_nobody_asked_is_nobody_answered(learned):
    assert generation.generate(*learned(), [], HOW) == ([], [])


# --- files ---


def rows_of(directory):
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("change", [{}, {"samples": 3, "temperature": 2.0}, {"leave_at": 0.9, "steps": 12}])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_answered_is_written_in_the_one_schema(loss, change, denoiser, learned, short_chains, tmp_path):
    how, problems = replace(HOW, latency_problems=2, **change), short_chains[10:30]
    generation.evaluate(how, problems, denoiser(loss), tmp_path)
    rows, timing = rows_of(tmp_path), json.loads((tmp_path / "timing.json").read_text())
    found, passes = generation.voted(*learned(loss), problems, how)
    canvas, k = learned(loss)[3], how.samples
    wanted = {"problem", "text", "correct", "steps_hold", "answered", "tokens", "passes", "seconds"}
    for row, problem, g, made in zip(rows, problems, found, passes, strict=True):
        assert set(row) == wanted and row["problem"] == problem.id and row["text"] == g.text
        assert row["correct"] == answers.is_correct(problem, g.text)
        assert row["steps_hold"] == answers.is_verified(problem, g.text)
        assert row["answered"] == (answers.extract(g.text) is not None)
        assert row["tokens"] == k * canvas and row["passes"] == made and row["seconds"] > 0
        if "leave_at" not in change or loss == "masked":
            assert made == k * how.steps
    if "leave_at" in change and loss != "masked":
        assert min(passes) < how.steps
    assert set(timing) == {"problems_per_second", "seconds_per_problem_batch1"}
    assert all(value > 0 for value in timing.values())
    assert timing["problems_per_second"] == pytest.approx(len(rows) / sum(row["seconds"] for row in rows))
    row = evaluation.result_row(rows, timing, **dict.fromkeys(evaluation.ROW_KEYS[:8], "any"))
    assert row["forward_passes_per_problem"] == pytest.approx(sum(passes) / len(passes))
    assert row["tokens_per_problem"] == k * canvas


def test_without_problems_for_latency_it_is_not_measured(denoiser, short_chains, tmp_path):
    generation.evaluate(replace(HOW, steps=1, latency_problems=0), short_chains[:2], denoiser("masked"), tmp_path)
    assert json.loads((tmp_path / "timing.json").read_text())["seconds_per_problem_batch1"] is None


def test_no_problem_and_no_model_are_one_sentence_each(denoiser, short_chains, tiny_llama, tmp_path):
    with pytest.raises(InputError, match="There is no problem to ask"):
        generation.evaluate(HOW, [], denoiser("masked"), tmp_path)
    with pytest.raises(InputError, match="no diffusion model"):
        generation.evaluate(HOW, short_chains, tiny_llama, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_share_of_right_answers_is_what_training_looks_at(learned, short_chains):
    model, tokenizer, trained, canvas = learned()
    asked = replace(HOW, steps=trained.check_with)
    found, _ = generation.generate(model, tokenizer, trained, canvas, [p.question for p in short_chains], asked)
    right = sum(answers.is_correct(p, g.text) for p, g in zip(short_chains, found, strict=True))
    assert generation.share_right(model, tokenizer, trained, canvas, short_chains) == right / 44
    assert isinstance(trained, Config) and right > 35
