"""Choosing among samples: a vote that can be repeated, a verifier that learns what it is shown."""

import json
import math
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import answers, models, selection, trainers
from lib.errors import InputError
from lib.problems import write_jsonl
from lib.prompts import Example, examples, prompt, solution
from lib.selection import Config, collate, encode, load_verifier, make_rows, rate, read_scores, score, train, vote

FAST = Config(steps=80, batch_size=16, learning_rate=1e-2, warmup_steps=5, device="cpu")
either_model = pytest.mark.parametrize("fixture", ["annotating", "tiny_t5"])

# --- by vote ---


def meaning(answer):
    """What an answer says, however it is written."""
    value = answers.number(answer)
    return value if value is not None else answers.truth(answer) or tuple(answer.lower().rstrip(".").split())


stated = st.sampled_from(
    ["18", "18.0", "$18.", "18 apples", "-18", "1,080", "1080", "1/2", ".5", "yes", "True", "no.", "Tom", "tom.", "x y"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.none() | stated, max_size=9))
@example(["18", "19", "18.0", "19"])
@example(["19", None, "18", None, None])
def test_the_vote_goes_to_the_meaning_stated_most_often_and_of_equals_to_the_first(found):
    counts = Counter(meaning(answer) for answer in found if answer is not None)
    place = vote(found)
    if not counts:
        assert place is None
        return
    winner = meaning(found[place])
    assert counts[winner] == max(counts.values())
    said = [None if answer is None else meaning(answer) for answer in found]
    assert place == said.index(winner), "the first that said it"
    rivals = [key for key, count in counts.items() if count == counts[winner]]
    assert all(place <= said.index(rival) for rival in rivals)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.none() | stated, st.integers(0, 4)), max_size=9))
def test_weights_count_as_that_many_votes(pairs):
    found, weights = [a for a, _ in pairs], [w for _, w in pairs]
    sums = Counter()
    for answer, weight in pairs:
        if answer is not None:
            sums[meaning(answer)] += weight
    place = vote(found, weights)
    assert (place is None) == (not sums)
    if sums:
        assert sums[meaning(found[place])] == max(sums.values())
        assert vote(found, [1] * len(found)) == vote(found)


def test_votes_by_hand():
    assert vote(["18", "19", "18.0"]) == 0
    assert vote(["19", "18", "18.0"]) == 1
    assert vote([None, None, "7"]) == 2
    assert vote([]) is vote([None, None]) is None
    assert vote(["a", "b", "b"], [1.0, 0.4, 0.5]) == 0
    assert meaning("1,080") == Fraction(1080), "the oracle reads numbers"


# --- rows and batches ---


def test_a_row_asks_for_the_verdict_at_every_token_of_the_solution_and_its_end(annotating, sums):
    tokenizer = models.load_tokenizer(str(annotating))
    (asked,) = examples([sums[34]])
    given = tokenizer(asked.prompt)["input_ids"]
    for right in (True, False):
        row = encode(tokenizer, asked, "<<3+4=7>>\n#### 7", right)
        assert row["input_ids"] == [*given, *tokenizer("<<3+4=7>>\n#### 7")["input_ids"], 1]
        written = len(row["input_ids"]) - len(given)
        assert row["labels"] == [-100.0] * len(given) + [float(right)] * written
    assert encode(tokenizer, asked, "")["input_ids"] == [*given, 1], "an empty solution has its end"


def test_rows_are_padded_on_the_right_and_padding_asks_for_nothing():
    rows = [{"input_ids": [5, 0, 1], "labels": [-100.0, 1.0, 1.0]}, {"input_ids": [7], "labels": [0.0]}]
    batch = collate(0, rows)
    assert batch["input_ids"].tolist() == [[5, 0, 1], [7, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100.0, 1.0, 1.0], [0.0, -100.0, -100.0]]
    assert batch["labels"].is_floating_point()


def test_the_loss_is_the_mean_cross_entropy_over_tokens_of_solutions():
    """sigmoid(0) = 1/2, sigmoid(log 3) = 3/4; the tokens are those of all rows together, not row by row."""
    log3 = math.log(3)
    logits = torch.tensor([[9.0, 0.0, log3], [log3, -9.0, -9.0]])[..., None]
    labels = torch.tensor([[-100.0, 1.0, 1.0], [0.0, -100.0, -100.0]])
    expected = -(math.log(1 / 2) + math.log(3 / 4) + math.log(1 / 4)) / 3
    outputs = SimpleNamespace(logits=logits)
    assert selection.loss(outputs, labels).item() == pytest.approx(expected)
    assert selection.loss(outputs, labels, torch.tensor(6)).item() == pytest.approx(expected / 2)


@either_model
def test_the_gradient_does_not_depend_on_padding(fixture, request, chains):
    network, tokenizer = load_verifier(request.getfixturevalue(fixture), device="cpu")
    network.eval()  # no dropout
    asked = examples([chains[0], chains[25]])
    rows = [encode(tokenizer, e, solution(e.problem), right) for e, right in zip(asked, (True, False), strict=True)]
    assert len(rows[0]["input_ids"]) + 3 < len(rows[1]["input_ids"])

    def gradients(batches):
        total = sum(map(len, ([x for x in row["labels"] if x != -100] for row in rows)))
        network.zero_grad()
        for batch in batches:
            outputs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            selection.loss(outputs, batch["labels"], total).backward()
        return [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]

    together = gradients([collate(0, rows)])
    wider = gradients([collate(0, [*rows, {"input_ids": [5] * 40, "labels": [-100.0] * 40}])])
    alone = gradients([collate(0, [row]) for row in rows])
    assert max(g.abs().max() for g in alone) > 1e-3
    for other in (together, wider):
        for a, b in zip(alone, other, strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def drawn(text, correct, finished=True):
    return {"text": text, "correct": correct, "finished": finished}


def decoded(tokenizer, rows):
    """(the whole text, the verdict) of each row."""
    return [(tokenizer.decode(row["input_ids"]), row["labels"][-1]) for row in rows]


def test_as_many_right_as_wrong_solutions_are_shown_each_text_of_a_problem_once(annotating, sums):
    tokenizer = models.load_tokenizer(str(annotating))
    a, b = sums[34], sums[35]
    samples = {
        a.id: [drawn("#### 7", True)] * 3 + [drawn("#### 8", False), drawn("#### 7", True), drawn("#### 9", False)],
        b.id: [drawn("#### 7", False), drawn("#### 8", True, finished=False), drawn("#### 5", False, finished=False)],
    }
    rows = make_rows(FAST, tokenizer, [a, b, sums[1]], samples)
    shown = decoded(tokenizer, rows)
    assert sorted(verdict for _, verdict in shown) == [0.0, 1.0]
    assert (f"{a.question}\n#### 7<eos>", 1.0) in shown
    many = {a.id: [drawn(f"#### {i}", i % 3 == 0) for i in range(30)], b.id: [drawn("#### 7", False)]}
    found = decoded(tokenizer, make_rows(FAST, tokenizer, [a, b], many))
    assert Counter(verdict for _, verdict in found) == {1.0: 10, 0.0: 10} and len(set(found)) == 20
    assert [verdict for _, verdict in found] != sorted(verdict for _, verdict in found), "shuffled"
    again, other = (make_rows(replace(FAST, seed=seed), tokenizer, [a, b], many) for seed in (0, 1))
    assert decoded(tokenizer, again) == found != decoded(tokenizer, other)


def test_solutions_over_max_length_are_left_out(annotating, sums):
    tokenizer = models.load_tokenizer(str(annotating))
    samples = {sums[34].id: [drawn("#### 7", True), drawn("#### 8", False), drawn("so " * 20 + "#### 7", True)]}
    short = encode(tokenizer, *examples([sums[34]]), "#### 7")["input_ids"]
    rows = make_rows(replace(FAST, max_length=len(short)), tokenizer, [sums[34]], samples)
    assert [len(row["input_ids"]) for row in rows] == [len(short)] * 2


@pytest.mark.parametrize(
    "samples, counts",
    [
        ([], "0 and 0"),
        ([drawn("#### 7", True)], "1 and 0"),
        ([drawn("#### 8", False), drawn("#### 9", False)], "0 and 2"),
        ([drawn("#### 8", False), drawn("#### 7", True, finished=False)], "0 and 1"),
    ],
)
def test_without_right_and_wrong_solutions_there_is_nothing_to_learn(samples, counts, annotating, sums, tmp_path):
    write_jsonl(tmp_path / "samples.jsonl", [{"id": sums[34].id, "samples": samples}])
    with pytest.raises(InputError, match=f"right and wrong solutions, and there are {counts}; draw more samples"):
        train(FAST, sums, tmp_path, annotating, tmp_path / "out")


# --- it learns ---


def separable(problems, directory):
    """Samples that can be told apart by what stands in them: a wrong solution shrugs at a place of its own."""
    rng, rows = random.Random(0), []
    for problem in problems:
        right = solution(problem)
        wrong = [f"{right[:cut]}?{right[cut:]}" for cut in rng.sample(range(len(right) - 4), 2)]
        texts = [(right, True), (f"so {right}", True), *((text, False) for text in wrong)]
        rows.append({"id": problem.id, "samples": [drawn(text, ok) for text, ok in rng.sample(texts, 4)]})
    write_jsonl(directory / "samples.jsonl", rows)
    return directory


def ranked(network, tokenizer, problems, directory):
    """The share of pairs of a right and a wrong sample of one problem in which the right one scores higher."""
    wins = []
    for e in examples(problems):
        samples = selection.read_samples(directory)[e.problem.id]
        scores = score(network, tokenizer, [e] * len(samples), [s["text"] for s in samples])
        pairs = list(zip(samples, scores, strict=True))
        wins += [r > w for right, r in pairs if right["correct"] for wrong, w in pairs if not wrong["correct"]]
    return sum(wins) / len(wins)


@either_model
def test_a_verifier_ranks_right_above_wrong_on_problems_it_was_not_shown(fixture, request, sums, chains, tmp_path):
    start = request.getfixturevalue(fixture)
    problems = sums if fixture == "annotating" else chains
    shown, held_out = problems[::2], problems[1::2]
    separable(problems, tmp_path)
    train(FAST, shown, tmp_path, start, tmp_path / "out")
    before = ranked(*load_verifier(start, device="cpu"), held_out, tmp_path)
    after = ranked(*load_verifier(tmp_path / "out" / "model", device="cpu"), held_out, tmp_path)
    assert after > 0.97 > before
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left - {"README.md"} == {"model", "metrics.jsonl", "config.json"}
    assert Config(**json.loads((tmp_path / "out" / "config.json").read_text())) == FAST
    curve = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in curve if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    assert [row["step"] for row in curve if "eval_loss" in row] == [20, 40, 60, 80]


@either_model
def test_a_verifier_starts_from_the_weights_of_the_model_that_sampled(fixture, request):
    start = request.getfixturevalue(fixture)
    network, _ = load_verifier(start, device="cpu")
    sampler, _ = models.load_model(str(start), device="cpu")
    assert torch.equal(network.get_input_embeddings().weight, sampler.get_input_embeddings().weight)
    own = dict(network.base_model.named_parameters())
    theirs = dict(sampler.base_model.named_parameters())
    shared = [name for name in theirs if not name.startswith("decoder.")]
    assert len(shared) >= 10
    for name in shared:
        assert torch.equal(own[name], theirs[name]), name


def test_the_logged_loss_is_the_mean_over_the_tokens_of_a_real_batch(annotating, sums, tmp_path):
    """Without dropout, with one batch of all rows: of different lengths, so that a mean of means would show."""
    start = tmp_path / "start"
    network, tokenizer = load_verifier(annotating, device="cpu")
    network.config.classifier_dropout = 0.0
    models.save_model(network, tokenizer, start)
    separable(sums[:8], tmp_path)
    config = replace(FAST, steps=1, batch_size=64)
    train(config, sums[:8], tmp_path, start, tmp_path / "out")
    rows = make_rows(config, tokenizer, sums[:8], selection.read_samples(tmp_path))
    held = len(rows) // 10 or 1

    def by_hand(directory, rows):
        network, _ = load_verifier(directory, device="cpu")
        losses = []
        for row in rows:
            with torch.no_grad():
                logits = network.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0, :, 0]
            for logit, label in zip(logits.tolist(), row["labels"], strict=True):
                if label != -100:
                    p = 1 / (1 + math.exp(-logit))
                    losses.append(-math.log(p if label else 1 - p))
        return sum(losses) / len(losses)

    logged, watched = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert logged["loss"] == pytest.approx(by_hand(start, rows[held:]), abs=1e-4)
    assert watched["eval_loss"] == pytest.approx(by_hand(tmp_path / "out" / "model", rows[:held]), abs=1e-4)


# --- interrupted ---


class Cut(Exception):
    """The power fails."""


CUT = replace(FAST, steps=8, batch_size=8)


@pytest.fixture(scope="module")
def undisturbed(annotating, sums, tmp_path_factory):
    """A folder of samples and, in whole/, the verifier that learned from them undisturbed."""
    folder = separable(sums[:12], tmp_path_factory.mktemp("undisturbed"))
    train(CUT, sums[:12], folder, annotating, folder / "whole")
    return folder


@pytest.mark.parametrize("mark", [True, False])
def test_a_training_that_was_cut_off_ends_with_the_same_weights_to_the_bit(
    mark, undisturbed, annotating, sums, tmp_path, monkeypatch
):
    """Cut when the fourth checkpoint stands, marked complete or not yet."""
    real = trainers.mark_complete

    def failing(checkpoint):
        if checkpoint.name != "checkpoint-4" or mark:
            real(checkpoint)
        if checkpoint.name == "checkpoint-4":
            raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(trainers, "mark_complete", failing)
        train(CUT, sums[:12], undisturbed, annotating, tmp_path)
    assert (tmp_path / "checkpoint-4").exists() and not (tmp_path / "model").exists()
    train(CUT, sums[:12], undisturbed, annotating, tmp_path)
    for name in ("model/model.safetensors", "metrics.jsonl", "config.json"):
        assert (undisturbed / "whole" / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert not list(tmp_path.glob("checkpoint-*"))


# --- scores ---


@either_model
def test_the_score_of_a_text_in_a_batch_is_its_score_alone(fixture, request, chains):
    network, tokenizer = load_verifier(request.getfixturevalue(fixture), device="cpu")
    asked = examples(chains) * 2
    texts = [solution(e.problem) for e in asked[:32]] + ["", "so\n" * 9, "#### 1"] + ["r1\n" * i for i in range(29)]
    alone = [score(network, tokenizer, [e], [text])[0] for e, text in zip(asked, texts, strict=True)]
    assert len(set(alone)) > 32 and all(0 < value < 1 for value in alone)
    for batch_size in (7, 64):
        assert score(network, tokenizer, asked, texts, batch_size) == pytest.approx(alone, abs=1e-5)
    assert score(network, tokenizer, [], []) == []


def test_a_score_is_the_probability_at_the_end_of_the_solution(annotating, sums):
    """At the end-of-sequence token, which stands for a whole solution; the prompt is part of what is read."""
    network, tokenizer = load_verifier(annotating, device="cpu")
    ids = tokenizer(prompt(sums[34]) + solution(sums[34]))["input_ids"] + [1]
    with torch.no_grad():
        logit = network.eval()(input_ids=torch.tensor([ids])).logits[0, -1, 0].item()
    e, other = examples([sums[34], sums[35]])
    (found,) = score(network, tokenizer, [e], [solution(sums[34])])
    assert found == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
    assert found != pytest.approx(score(network, tokenizer, [other], [solution(sums[34])])[0], abs=1e-6)


def test_a_rating_scores_every_sample_in_its_place_and_one_without_an_end_gets_0(annotating, sums, tmp_path):
    models.seed_everything(0)
    network, tokenizer = load_verifier(annotating, device="cpu")
    models.save_model(network, tokenizer, tmp_path / "verifier")
    few = sums[:3]
    samples = {p.id: [drawn(solution(q), True, finished=q is not few[1]) for q in few] for p in few}
    write_jsonl(tmp_path / "samples.jsonl", [{"id": name, "samples": found} for name, found in samples.items()])
    rate(FAST, few[::-1], tmp_path, tmp_path / "verifier", tmp_path)
    found = read_scores(tmp_path)
    assert list(found) == [p.id for p in few[::-1]]
    for p in few:
        expected = score(network, tokenizer, examples([p]) * 3, [solution(q) for q in few])
        assert [value for value, _ in found[p.id]] == pytest.approx([expected[0], 0.0, expected[2]], abs=1e-5)
        assert all(seconds > 0 for _, seconds in found[p.id])


def test_the_prompt_of_an_example_is_what_the_verifier_reads(annotating, sums, tmp_path):
    network, tokenizer = load_verifier(annotating, device="cpu")
    own = Example(sums[0], prompt(sums[34]), "", "other words")
    (expected,) = score(network, tokenizer, examples([sums[34]]), ["#### 7"])
    assert score(network, tokenizer, [own], ["#### 7"]) == [pytest.approx(expected, abs=1e-6)]


# --- models that cannot be verifiers ---


def test_an_adapter_or_a_model_that_is_not_there_is_one_sentence(tiny_llama, tmp_path):
    from peft import get_peft_model

    model, tokenizer = models.load_model(str(tiny_llama), device="cpu")
    models.save_model(get_peft_model(model, models.lora_config(model, 2)), tokenizer, tmp_path / "adapter")
    with pytest.raises(InputError, match="a verifier starts from a whole model, not from an adapter; merge it first"):
        load_verifier(tmp_path / "adapter")
    with pytest.raises(InputError) as caught:
        load_verifier(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_a_model_directory_that_lacks_a_file_is_one_sentence(tiny_llama, tmp_path):
    model, tokenizer = models.load_model(str(tiny_llama), device="cpu")
    models.save_model(model, tokenizer, tmp_path / "half")
    for lost in ("model.safetensors", "config.json"):
        (tmp_path / "half" / lost).unlink()
        with pytest.raises(InputError, match="half"):
            load_verifier(tmp_path / "half")
