"""Answers after thoughts: the same logits however they are asked for, what is counted, what is refused."""

import json
import random
from dataclasses import replace

import pytest
import torch

from lib import answers, kv_cache, models
from lib.coconut import engine, generation, training
from lib.coconut.config import Config
from lib.coconut.schedule import Stage
from lib.errors import InputError
from lib.generation import advance
from lib.problems import make_problem
from lib.prompts import prompt, solution
from lib.tasks import modular_chain
from lib.tokenization import build_tokenizer
from tests.conftest import small_llama, with_tokenizer
from tests.oracles import coconut as oracle

CLOSE = dict(rtol=0, atol=2e-5)
QUESTIONS = ["v1 + n2 ?\n", "v0 * n2 - n1 + n4 * n3 ?\n", "v3 ?\n", "v4 - n1 - n2 - n3 - n1 ?\n", "v1 + n3 ?\n"]


@pytest.fixture(scope="module")
def untrained(chain_texts):
    """kind, method, markers -> (a model that thinks, its tokenizer): random weights, outputs that differ."""

    def make(kind="llama", method="coconut", markers=True, pad_is_eos=False, **settings):
        tokenizer = build_tokenizer(chain_texts, 320)
        if pad_is_eos:
            tokenizer.pad_token = tokenizer.eos_token
        model = oracle.small_model(kind)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        torch.manual_seed(4)
        with torch.no_grad():
            for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
                weight[oracle.VOCABULARY :].normal_(std=0.5)
        config = Config(method=method, markers=markers, source="last_hidden", **settings)
        return engine.wrap(config, model, tokenizer).eval(), tokenizer

    return make


@pytest.fixture(scope="module")
def learned(tiny_llama, chains, tmp_path_factory):
    """The directory of a coconut that learned 16 chains by heart, with markers and the published answer prefix."""
    out_dir = tmp_path_factory.mktemp("learned")
    config = Config(model=str(tiny_llama), markers=True, answer_prefix="### ", max_latent_stage=3, batch_size=16)
    config = replace(config, steps=140, switch_at=0.9, check_steps=10, learning_rate=2e-2, device="cpu")
    training.train(replace(config, mix=0.0), chains[8:24], chains[8:24], out_dir)
    return out_dir / "model"


def ids_of(tokenizer, thinker, question, k):
    start, end, latent = thinker.markers
    return [i for i in (*tokenizer(question)["input_ids"], start, *[latent] * k, end) if i is not None]


# --- the same logits, however they are asked for ---


@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("markers", [True, False])
def test_questions_read_together_give_the_logits_of_the_naive_model(markers, pad_is_eos, kind, untrained):
    """And so do the tokens written after them, each row going on from its own length."""
    thinker, tokenizer = untrained(kind, markers=markers, pad_is_eos=pad_is_eos)
    asked = [tokenizer(q)["input_ids"] for q in QUESTIONS]
    for k in (0, 1, 4):
        with torch.inference_mode():
            logits, state = generation.read(thinker, k, None, thinker.model, tokenizer, asked)
            after = advance(thinker.model, state, torch.tensor([7, 30, 9, 11, 40]))
        for i, (question, more) in enumerate(zip(QUESTIONS, (7, 30, 9, 11, 40), strict=True)):
            expected = oracle.logits(
                thinker.model, [*ids_of(tokenizer, thinker, question, k), more], thinker.markers[2]
            )
            assert expected.abs().max() > 6
            torch.testing.assert_close(logits[i], expected[-2], **CLOSE)
            torch.testing.assert_close(after[i], expected[-1], **CLOSE)


@pytest.mark.parametrize("passes", [0, 1, 2, 5])
def test_parallel_thoughts_work_on_the_cache_of_generation(passes, untrained):
    thinker, tokenizer = untrained(method="coconut_jacobi", jacobi_passes=passes)
    asked = [tokenizer(q)["input_ids"] for q in QUESTIONS]
    for k in (0, 1, 4):
        with torch.inference_mode():
            logits, state = generation.read(thinker, k, None, thinker.model, tokenizer, asked)
            after = advance(thinker.model, state, torch.tensor([7] * 5))
        assert {type(layer) for layer in state["cache"].layers} == {kv_cache.RoomyLayer}
        assert state["cache"].get_seq_length() == state["attention_mask"].shape[1]
        for i, question in enumerate(QUESTIONS):
            ids = [*ids_of(tokenizer, thinker, question, k), 7]
            expected = oracle.logits(thinker.model, ids, thinker.markers[2], passes=passes)
            torch.testing.assert_close(logits[i], expected[-2], **CLOSE)
            torch.testing.assert_close(after[i], expected[-1], **CLOSE)


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_texts_are_those_of_the_published_way(pad_is_eos, markers, untrained):
    """One by one, the whole row read anew for each token; only where no two tokens are all but equally likely."""
    thinker, tokenizer = untrained("llama", markers=markers, pad_is_eos=pad_is_eos)
    counts = [2, 0, 3, 1, 2]
    found = generation.generate(thinker, tokenizer, QUESTIONS, counts, max_new_tokens=12)
    texts = set()
    for question, k, ours in zip(QUESTIONS, counts, found, strict=True):
        written, logits = oracle.uncached_generate(
            thinker.model, tokenizer(question)["input_ids"], thinker.markers, k, 12, tokenizer.eos_token_id
        )
        best = torch.stack(logits).topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-3
        assert ours.text == tokenizer.decode(written, skip_special_tokens=True)
        assert ours.tokens == len(written) + k
        assert ours.finished == (written[-1] == tokenizer.eos_token_id)
        texts.add(ours.text)
    assert len(texts) == 5, "outputs differ"


def test_small_and_large_batches_give_the_same_answers(untrained, learned, chains):
    for thinker, tokenizer in (untrained("gpt2", pad_is_eos=True), engine.load(learned, device="cpu")[:2]):
        asked = [prompt(p) for p in chains[:12]] + [prompt(p) for p in chains[3:6]]
        counts = [n % 4 for n in range(15)]
        one, *others = (
            generation.generate(thinker, tokenizer, asked, counts, batch_tokens=budget, max_new_tokens=8)
            for budget in (1, 100, 16384)
        )
        for other in others:
            assert [(g.text, g.tokens, g.finished) for g in other] == [(g.text, g.tokens, g.finished) for g in one]
        assert len({g.text for g in one}) > 3


def test_every_answer_is_that_of_its_own_number_of_thoughts(untrained):
    """In the order they were asked for, however they are grouped."""
    thinker, tokenizer = untrained()
    counts = [3, 0, 3, 1, 0]
    found = generation.generate(thinker, tokenizer, QUESTIONS, counts, max_new_tokens=6)
    for question, k, ours in zip(QUESTIONS, counts, found, strict=True):
        (alone,) = generation.generate(thinker, tokenizer, [question], k, max_new_tokens=6)
        assert (ours.text, ours.tokens) == (alone.text, alone.tokens)
    assert (
        len({generation.generate(thinker, tokenizer, QUESTIONS[:1], k, max_new_tokens=6)[0].text for k in range(5)}) > 1
    )


def test_samples_by_index_may_have_different_numbers_of_thoughts(untrained):
    thinker, tokenizer = untrained()
    how = dict(max_new_tokens=4, temperature=1.0)
    both = generation.generate(thinker, tokenizer, QUESTIONS[:2], [1, 2], indices=[5, 6], **how)
    alone = [generation.generate(thinker, tokenizer, [QUESTIONS[i]], 1 + i, indices=[5 + i], **how)[0] for i in (0, 1)]
    assert [g.text for g in both] == [g.text for g in alone]


# --- what happens on the way ---


def test_edit_sees_each_thought_and_can_change_it(untrained):
    thinker, tokenizer = untrained()
    seen = []

    def look(j, inputs):
        seen.append((j, inputs.shape))
        return inputs

    (plain,) = generation.generate(thinker, tokenizer, QUESTIONS[:1], 3, max_new_tokens=6)
    (looked,) = generation.generate(thinker, tokenizer, QUESTIONS[:1], 3, edit=look, max_new_tokens=6)
    assert looked.text == plain.text and seen == [(j, (1, 32)) for j in range(3)]
    seen.clear()
    generation.generate(thinker, tokenizer, QUESTIONS, [0, 2, 2, 1, 1], edit=look, max_new_tokens=2)
    assert [j for j, _ in seen] == [0, 0, 1] and sum(shape[0] for _, shape in seen) == 2 + 2 * 2
    asked = [tokenizer(q)["input_ids"] for q in QUESTIONS]
    with torch.inference_mode():
        logits = [
            generation.read(thinker, 2, edit, thinker.model, tokenizer, asked)[0]
            for edit in (None, lambda j, inputs: inputs * 0, lambda j, inputs: inputs.flip(0) if j else inputs)
        ]
    assert (logits[1] - logits[0]).abs().amax(-1).min() > 0.1
    changed = (logits[2] - logits[0]).abs().amax(-1)
    assert changed[2] == pytest.approx(0, abs=1e-5) and changed[[0, 1, 3, 4]].min() > 0.1, "the middle row is its own"


@pytest.mark.parametrize("was", [True, False])
def test_a_model_goes_on_as_it_was(was, untrained):
    """With dropout, that would show in the answers too."""
    thinker, tokenizer = untrained("gpt2")
    for module in thinker.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    before = [g.text for g in generation.generate(thinker.eval(), tokenizer, QUESTIONS, 2, max_new_tokens=6)]
    thinker.train(was)
    assert [g.text for g in generation.generate(thinker, tokenizer, QUESTIONS, 2, max_new_tokens=6)] == before
    assert {module.training for module in thinker.modules()} == {was}


def test_a_question_may_hold_a_newline_and_none_of_the_new_tokens_is_shown(learned):
    thinker, tokenizer, _, _ = engine.load(learned, device="cpu")
    asked = ["v1 + n2\nr3 ?\n", "v1 + n2 r3 ?\n"]
    for k in (0, 2):
        found = generation.generate(thinker, tokenizer, asked, k, max_new_tokens=8)
        assert not any("<|" in g.text or "latent" in g.text for g in found)
        ids = [ids_of(tokenizer, thinker, q, k) for q in asked]
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == asked[0]
        for place, row in enumerate(ids):
            with torch.inference_mode():
                read = generation.read(
                    thinker, k, None, thinker.model, tokenizer, [tokenizer(q)["input_ids"] for q in asked]
                )[0]
            expected = oracle.logits(thinker.model, row, thinker.markers[2], "normalised")[-1]
            torch.testing.assert_close(read[place], expected, rtol=0, atol=1e-4)


# --- what is counted ---


def backbone_calls(thinker, work):
    calls = []
    hook = thinker.model.base_model.register_forward_pre_hook(lambda *given: calls.append(1))
    found = work()
    hook.remove()
    return len(calls), found


@pytest.mark.parametrize(
    "settings, k",
    [
        (dict(), 0),
        (dict(), 1),
        (dict(), 4),
        (dict(markers=False), 3),
        (dict(method="coconut_pause_as_thought"), 3),
        (dict(method="coconut_jacobi", jacobi_passes=2), 4),
        (dict(method="coconut_jacobi", jacobi_passes=2), 3),
        (dict(method="coconut_jacobi", jacobi_passes=0), 3),
        (dict(method="coconut_jacobi", jacobi_passes=2), 1),
        (dict(method="coconut_jacobi", jacobi_passes=2), 0),
        (dict(method="coconut_jacobi", jacobi_passes=4), 2),
        (dict(method="coconut_no_thought"), 0),
    ],
)
def test_the_passes_that_are_told_are_the_passes_that_are_made(settings, k, untrained):
    thinker, tokenizer = untrained(**settings)
    calls, (found,) = backbone_calls(
        thinker, lambda: generation.generate(thinker, tokenizer, QUESTIONS[1:2], k, max_new_tokens=5)
    )
    assert found.tokens - k == 5
    assert calls == 5 + generation.passes_of(Config(source="last_hidden", **({"markers": True} | settings)), k)


def predictions(directory):
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]


def test_what_was_learned_is_answered_and_counted(learned, chains, tmp_path):
    how = generation.Config(max_new_tokens=12, latency_problems=2, device="cpu")
    generation.evaluate(how, chains[8:24], learned, tmp_path)
    rows = predictions(tmp_path)
    assert [row["problem"] for row in rows] == [p.id for p in chains[8:24]]
    assert sum(row["correct"] for row in rows) >= 14, "the arbiter reads the published ### too"
    for row, problem in zip(rows, chains[8:24], strict=True):
        if row["correct"]:
            assert row["text"] == f"#### {problem.answer}" and answers.is_correct(problem, row["text"])
            assert row["tokens"] == row["passes"] and row["tokens"] > 3 + 2, "three thoughts, answer, end"
    assert set(json.loads((tmp_path / "timing.json").read_text())) >= {"problems_per_second"}
    thinker, tokenizer, trained, stage = engine.load(learned, device="cpu")
    assert stage == Stage(3, 3, 3) and trained.answer_prefix == "### "
    direct = generation.generate(thinker, tokenizer, [prompt(p) for p in chains[8:24]], 3, max_new_tokens=12)
    assert [row["tokens"] for row in rows] == [g.tokens for g in direct]
    one = tmp_path / "one"
    one.mkdir()
    generation.evaluate(replace(how, thoughts=1, batch_tokens=1, latency_problems=0), chains[8:10], learned, one)
    fewer = generation.generate(thinker, tokenizer, [prompt(p) for p in chains[8:10]], 1, max_new_tokens=12)
    assert [row["tokens"] for row in predictions(one)] == [g.tokens for g in fewer]


def test_thoughts_are_imposed_as_training_says_or_as_asked():
    short, long = make_problem("a", ["1"], "1", "mine"), make_problem("b", ["1", "2", "3", "4"], "4", "mine")
    trained = Config(max_latent_stage=3, c_thought=2, pad_latent_to_max=False)
    how = generation.Config()
    assert generation.thoughts_for(how, trained, Stage(2, 2, 4), [short, long]) == [2, 4]
    padded = replace(trained, pad_latent_to_max=True)
    assert generation.thoughts_for(how, padded, Stage(2, 2, 4), [short, long]) == [4, 4]
    assert generation.thoughts_for(replace(how, thoughts=5), padded, Stage(2, 2, 4), [short, long]) == [5, 5]
    assert generation.thoughts_for(replace(how, thoughts=0), padded, Stage(2, 2, 4), [short, long]) == [0, 0]
    for method in ("cot", "coconut_no_thought", "answer_only"):
        plain = replace(trained, method=method)
        assert generation.thoughts_for(replace(how, thoughts=0), plain, Stage(0, 0, 0), [short]) == [0]
        with pytest.raises(InputError, match=f"trained as {method} has no thoughts; ask it with thoughts 0"):
            generation.thoughts_for(replace(how, thoughts=1), plain, Stage(0, 0, 0), [short])


def test_a_model_without_thoughts_is_not_said_to_have_had_some(untrained):
    thinker, tokenizer = untrained(method="coconut_no_thought")
    with pytest.raises(InputError):
        generation.generate(thinker, tokenizer, QUESTIONS, 3, max_new_tokens=2)


def test_no_problem_and_no_model_are_one_sentence_each(learned, tiny_llama, tmp_path, chains):
    with pytest.raises(InputError, match="There is no problem to ask"):
        generation.evaluate(generation.Config(device="cpu"), [], learned, tmp_path)
    with pytest.raises(InputError, match="not a model that thinks"):
        generation.evaluate(generation.Config(device="cpu"), chains, tiny_llama, tmp_path)
    assert models.load_model(str(learned), device="cpu"), "any other code can load it too"


@pytest.mark.parametrize(
    "prefix, text, expected",
    [
        ("### ", "r3\n### 5", "r3\n#### 5"),
        ("### ", "no answer", "no answer"),
        ("#### ", "r3\n#### 5", "r3\n#### 5"),
        ("### ", "#### 5", "#### 5"),
        ("", "5", "#### 5"),
    ],
)
def test_the_arbiter_gets_its_own_marker(prefix, text, expected):
    assert generation.with_marker(text, Config(answer_prefix=prefix)) == expected


# --- what thoughts are good for ---


def test_thoughts_learn_what_the_same_curriculum_without_them_does_not(tmp_path):
    """All chains of three operations modulo 3; one layer is too shallow to do them in a single pass. Chance is 1/3."""
    problems = modular_chain.generate(0, n_operations=3, modulus=3)
    random.Random(0).shuffle(problems)
    valid, train = problems[:93], problems[93:]
    texts = [prompt(p) + solution(p) for p in modular_chain.generate(300, n_operations=3, modulus=3)]
    base = with_tokenizer(small_llama(texts), texts, tmp_path / "base")
    config = Config(model=str(base), max_latent_stage=3, steps=600, switch_at=0.95, check_steps=20, mix=0.2, seed=1)
    config = replace(config, learning_rate=5e-3, warmup_steps=20, decay_steps=40, valid_problems=93, device="cpu")
    right = {}
    for method in ("coconut", "coconut_no_thought"):
        training.train(replace(config, method=method), train, valid, tmp_path / method)
        (tmp_path / f"{method}_asked").mkdir()
        how = generation.Config(max_new_tokens=12, latency_problems=0, device="cpu")
        generation.evaluate(how, valid, tmp_path / method / "model", tmp_path / f"{method}_asked")
        right[method] = sum(row["correct"] for row in predictions(tmp_path / f"{method}_asked")) / len(valid)
        last = [json.loads(line) for line in (tmp_path / method / "metrics.jsonl").read_text().splitlines()][-1]
        assert last["stage"] == 3, "all steps gone"
    assert right["coconut"] > 0.7 and right["coconut_no_thought"] < 0.55, right
