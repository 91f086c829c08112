"""Completions: the same in a batch as alone, cut at their end, sampled from the stated distribution."""

import math
import random
from collections import Counter

import numpy
import pytest
import torch

from lib import models, prompts
from lib.generation import generate, token_probabilities

either_model = pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5"])


def load(directory, pad_is_eos=False):
    model, tokenizer = models.load_model(str(directory), device="cpu")
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@pytest.fixture(scope="module")
def questions(chains):
    """Prompts of very different lengths, the long ones first."""
    odd = ["v1 + n2 * n3 - n4 + n1 - n2 * n2 + n3 ?\n", "?\n", "Ünïcödé 🧮 ?\n", "r"]
    return odd + [prompts.prompt(p) for p in reversed(chains[::3])]


def next_logits(model, ids, decoded=()):
    """Logits for the token after `ids` (causal) or after `decoded` given `ids`: one plain forward, no padding."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            decoder = torch.tensor([[model.config.decoder_start_token_id, *decoded]])
            return model(input_ids=torch.tensor([ids]), decoder_input_ids=decoder).logits[0, -1]
        return model(input_ids=torch.tensor([[*ids, *decoded]])).logits[0, -1]


def greedy(model, tokenizer, prompt, max_new_tokens):
    """Greedy decoding by hand: the whole text through the model for each token. Returns the new ids."""
    ids, new = tokenizer(prompt)["input_ids"], []
    while len(new) < max_new_tokens and tokenizer.eos_token_id not in new:
        new.append(int(next_logits(model, ids, new).argmax()))
    return new


# --- batches ---


@either_model
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_a_batch_gives_what_each_prompt_gives_alone(fixture, pad_is_eos, request, questions):
    model, tokenizer = load(request.getfixturevalue(fixture), pad_is_eos)
    found = generate(model, tokenizer, questions, max_new_tokens=6, batch_size=5)
    for question, generation in zip(questions, found, strict=True):
        new = greedy(model, tokenizer, question, 6)
        assert (generation.text, generation.tokens) == (tokenizer.decode(new, skip_special_tokens=True), len(new))


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_a_trained_model_answers_the_same_in_any_batch_size(pad_is_eos, trained_run, chains):
    model, tokenizer = load(trained_run / "model", pad_is_eos)
    asked = [prompts.prompt(p) for p in chains]
    for batch_size in (1, 7, 64):
        found = generate(model, tokenizer, asked, max_new_tokens=12, batch_size=batch_size)
        assert [g.text for g in found] == [prompts.solution(p) for p in chains]


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_padding_does_not_move_the_first_logits(pad_is_eos, tiny_llama, questions):
    """What the model computes on a real padded batch, caught on its way out, against a forward without padding."""
    model, tokenizer = load(tiny_llama, pad_is_eos)
    seen, padded = 0, 0

    def compare(module, arguments, inputs, output):
        nonlocal seen, padded
        if inputs["input_ids"].shape[1] == 1:
            return
        for ids, mask, logits in zip(inputs["input_ids"], inputs["attention_mask"], output.logits, strict=True):
            hook.remove()
            assert torch.allclose(logits[-1], next_logits(model, ids[mask.bool()].tolist()), atol=1e-4)
            seen, padded = seen + 1, padded + int((mask == 0).any())

    for start in range(0, len(questions), 7):
        hook = model.register_forward_hook(compare, with_kwargs=True)
        generate(model, tokenizer, questions[start : start + 7], max_new_tokens=1, batch_size=7)
    assert seen == len(questions) and padded > 5


def test_results_stand_in_the_order_of_the_prompts(trained_run, chains):
    model, tokenizer = load(trained_run / "model")
    order = random.Random(0).sample(range(len(chains)), len(chains))
    found = generate(model, tokenizer, [prompts.prompt(chains[i]) for i in order], max_new_tokens=12, batch_size=5)
    assert [g.text for g in found] == [prompts.solution(chains[i]) for i in order]


def test_no_prompts_give_no_completions(tiny_llama):
    assert generate(*load(tiny_llama), []) == []


@either_model
@pytest.mark.parametrize("side", ["left", "right"])
def test_tokenizer_and_model_are_left_as_they_were(fixture, side, request, questions):
    model, tokenizer = load(request.getfixturevalue(fixture))
    tokenizer.padding_side = side
    for training in (True, False):
        model.train(training)
        generate(model, tokenizer, questions[:3], max_new_tokens=2)
        assert model.training == training
        assert tokenizer.padding_side == side
        assert torch.is_grad_enabled() and all(weight.requires_grad for weight in model.parameters())


def test_dropout_is_off_while_generating(tiny_t5, questions):
    model, tokenizer = load(tiny_t5)
    before = [g.text for g in generate(model, tokenizer, questions, max_new_tokens=6)]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    model.train()
    assert [g.text for g in generate(model, tokenizer, questions, max_new_tokens=6)] == before


# --- the end ---


def test_the_end_is_counted_but_not_shown(trained_run, chains):
    model, tokenizer = load(trained_run / "model")
    asked = [prompts.prompt(p) for p in chains]
    for problem, g in zip(chains, generate(model, tokenizer, asked, max_new_tokens=20), strict=True):
        assert g.finished and g.text == prompts.solution(problem)
        assert g.tokens == len(tokenizer(g.text)["input_ids"]) + 1
        assert g.seconds > 0


def test_running_out_of_tokens_is_not_an_end(trained_run, chains):
    model, tokenizer = load(trained_run / "model")
    problem = chains[-1]
    whole = len(tokenizer(prompts.solution(problem))["input_ids"]) + 1
    (just,) = generate(model, tokenizer, [prompts.prompt(problem)], max_new_tokens=whole)
    (short,) = generate(model, tokenizer, [prompts.prompt(problem)], max_new_tokens=whole - 1)
    assert (just.finished, just.tokens) == (True, whole)
    assert (short.finished, short.tokens) == (False, whole - 1)
    assert short.text == prompts.solution(problem), "the text is whole, only its end was not said"


def test_nothing_behind_the_end_is_shown(trained_run, chains):
    """In a batch the short ones wait for the long one, and what fills them up is neither counted nor shown."""
    model, tokenizer = load(trained_run / "model", pad_is_eos=True)
    short, long = chains[0], chains[-1]
    found = generate(model, tokenizer, [prompts.prompt(short), prompts.prompt(long)], max_new_tokens=20)
    assert found[0].tokens == len(tokenizer(prompts.solution(short))["input_ids"]) + 1 < found[1].tokens
    assert found[0].text == prompts.solution(short)


# --- sampling ---


def states():
    return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@either_model
def test_sampling_repeats_by_seed_and_leaves_the_global_generators_alone(fixture, request, questions):
    model, tokenizer = load(request.getfixturevalue(fixture))
    torch.manual_seed(11)
    before = states()

    def sample(seed):
        found = generate(model, tokenizer, questions, max_new_tokens=8, temperature=1.5, seed=seed, batch_size=6)
        return [g.text for g in found]

    first = sample(1)
    assert states() == before
    torch.rand(5)
    assert sample(1) == first
    assert sample(2) != first


def test_temperature_0_is_greedy_whatever_the_seed(tiny_llama, questions):
    model, tokenizer = load(tiny_llama)
    texts = {tuple(g.text for g in generate(model, tokenizer, questions, 6, seed=seed)) for seed in (0, 1)}
    assert len(texts) == 1


def surprise(counts, chances):
    """Pearson's chi-square of counts by text, in standard deviations above its mean; rare texts share one bin."""
    n, frequent = sum(counts.values()), [text for text, p in chances.items() if p * sum(counts.values()) >= 8]
    bins = [(counts[text], n * chances[text]) for text in frequent]
    bins.append((n - sum(seen for seen, _ in bins), n - sum(expected for _, expected in bins)))
    freedom = len(bins) - 1
    statistic = sum((seen - expected) ** 2 / max(expected, 1) for seen, expected in bins)
    return (statistic - freedom) / math.sqrt(2 * freedom)


@either_model
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax_of_logits_over_temperature(fixture, temperature, request):
    """Over the whole vocabulary: the library's habit of drawing from the best 50 alone would show."""
    model, tokenizer = load(request.getfixturevalue(fixture))
    prompt = "v3 + n4 ?\n"
    logits = next_logits(model, tokenizer(prompt)["input_ids"])

    def chances(temperature):
        found = Counter()
        for i, p in enumerate((logits / temperature).softmax(-1).tolist()):
            found[tokenizer.decode([i], skip_special_tokens=True)] += p  # lone bytes look alike
        return found

    found = generate(model, tokenizer, [prompt] * 6000, 1, temperature=temperature, seed=5, batch_size=2000)
    counts = Counter(g.text for g in found)
    assert surprise(counts, chances(temperature)) < 5
    for other in (temperature / 2, temperature * 2):
        assert surprise(counts, chances(other)) > 10, "the sample is too small to tell temperatures apart"


# --- the probabilities of a given completion ---


@either_model
def test_token_probabilities_are_those_of_plain_forwards(fixture, request, chains):
    model, tokenizer = load(request.getfixturevalue(fixture))
    for problem in (chains[0], chains[-1]):
        prompt, completion = prompts.prompt(problem), prompts.solution(problem)
        wanted = tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
        found = token_probabilities(model, tokenizer, prompt, completion, top=4)
        assert "".join(entry["token"] for entry in found) == completion + tokenizer.eos_token
        for k, (entry, token) in enumerate(zip(found, wanted, strict=True)):
            plain = next_logits(model, tokenizer(prompt)["input_ids"], wanted[:k]).softmax(-1)
            assert entry["probability"] == pytest.approx(plain[token].item(), abs=1e-5)
            best = plain.topk(4)
            assert [p for _, p in entry["top"]] == pytest.approx(best.values.tolist(), abs=1e-5)
            assert [text for text, _ in entry["top"]] == [tokenizer.decode([i]) for i in best.indices.tolist()]


def test_a_trained_model_is_sure_of_its_solution_and_surprised_by_another(trained_run, chains):
    model, tokenizer = load(trained_run / "model")
    problem = chains[-1]
    right = token_probabilities(model, tokenizer, prompts.prompt(problem), prompts.solution(problem))
    assert all(entry["probability"] > 0.9 and entry["top"][0][0] == entry["token"] for entry in right)
    other = next(p for p in chains[20:] if p.steps[0] != problem.steps[0])
    wrong = token_probabilities(model, tokenizer, prompts.prompt(problem), prompts.solution(other))
    assert wrong[0]["probability"] < 0.1
