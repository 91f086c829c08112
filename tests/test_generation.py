"""Completions: the same in a batch as alone, cut at their end, sampled from the stated distribution."""

import itertools
import math
import random
from collections import Counter
from contextlib import contextmanager

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import models, prompts
from lib.generation import Chooser, generate, micro_batches, random_numbers, request_seed, stream, token_probabilities
from lib.tokenization import build_tokenizer

ALONE, SOME, ALL = 1, 150, 10**6  # batch_tokens for batches of one row, of a few, of all rows

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


@contextmanager
def watched(module):
    """The keyword arguments and the output of every forward pass of a module."""
    seen = []
    hook = module.register_forward_hook(lambda *call: seen.append(call[2:]), with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def fed(arguments):
    """The ids that a forward pass of a model was given to go on with: (rows, positions)."""
    return arguments["decoder_input_ids"] if "decoder_input_ids" in arguments else arguments["input_ids"]


def without_padding(arguments):
    """The prompts that a forward pass read, each without its padding."""
    masked = arguments["input_ids"], arguments["attention_mask"]
    return [ids[mask.bool()].tolist() for ids, mask in zip(*masked, strict=True)]


def all_logits(model, ids, decoded):
    """Logits after each token of `decoded`, given `ids`: one plain forward, (decoded, vocabulary)."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            decoder = torch.tensor([[model.config.decoder_start_token_id, *decoded]])
            return model(input_ids=torch.tensor([ids]), decoder_input_ids=decoder).logits[0, 1:]
        return model(input_ids=torch.tensor([[*ids, *decoded]])).logits[0, len(ids) :]


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
    found = generate(model, tokenizer, questions, max_new_tokens=6, batch_tokens=SOME)
    for question, generation in zip(questions, found, strict=True):
        new = greedy(model, tokenizer, question, 6)
        assert (generation.text, generation.tokens) == (tokenizer.decode(new, skip_special_tokens=True), len(new))


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_a_trained_model_answers_the_same_in_any_batch_size(pad_is_eos, trained_run, chains):
    model, tokenizer = load(trained_run / "model", pad_is_eos)
    asked = [prompts.prompt(p) for p in chains]
    for batch_tokens in (ALONE, SOME, ALL):
        found = generate(model, tokenizer, asked, max_new_tokens=12, batch_tokens=batch_tokens)
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
        generate(model, tokenizer, questions[start : start + 7], max_new_tokens=1, batch_tokens=ALL)
    assert seen == len(questions) and padded > 5


def test_results_stand_in_the_order_of_the_prompts(trained_run, chains):
    model, tokenizer = load(trained_run / "model")
    order = random.Random(0).sample(range(len(chains)), len(chains))
    asked = [prompts.prompt(chains[i]) for i in order]
    found = generate(model, tokenizer, asked, max_new_tokens=12, batch_tokens=SOME)
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


@pytest.mark.parametrize("moment", ["before the first", "after the first", "after the last"])
def test_closing_a_stream_restores_the_training_mode(moment, tiny_t5, questions):
    model, tokenizer = load(tiny_t5)
    for training in (True, False):
        model.train(training)
        going = stream(model, tokenizer, questions[:2], max_new_tokens=2, batch_tokens=ALONE)
        for _ in range({"before the first": 0, "after the first": 1, "after the last": 2}[moment]):
            next(going)
        going.close()
        assert model.training == training


def test_a_failing_model_is_left_in_its_training_mode(tiny_llama, questions):
    model, tokenizer = load(tiny_llama)
    model.train()
    model.lm_head.register_forward_hook(lambda *call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, tokenizer, questions, max_new_tokens=2)
    assert model.training


# --- micro-batches ---


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=40), st.integers(1, 9), st.integers(1, 300))
def test_micro_batches_hold_every_row_once_within_the_budget_longest_first(rows, new, budget):
    lengths, keys = [length for length, _ in rows], [f"{length} {name}" for length, name in rows]
    batches = micro_batches(lengths, new, budget, keys)
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(rows)))
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
    runs = [key for key, _ in itertools.groupby(keys[row] for row in order)]
    assert len(runs) == len(set(keys)), "equal keys stand together"
    for n, batch in enumerate(batches, 1):
        width = lengths[batch[0]] + new
        assert len(batch) == 1 or len(batch) * width <= budget
        assert n == len(batches) or (len(batch) + 1) * width > budget, "another row would have had its place"


def stories(found):
    """What does not depend on the clock."""
    return [(g.text, g.tokens, g.finished) for g in found]


@either_model
def test_a_stream_begun_later_yields_exactly_the_remaining_batches(fixture, request, questions):
    model, tokenizer = load(request.getfixturevalue(fixture))
    asked, indices = questions * 2, [0] * len(questions) + [1] * len(questions)

    def batches(done):
        arguments = dict(max_new_tokens=5, temperature=1.5, seed=4, indices=indices, batch_tokens=SOME, done=done)
        return [(rows, stories(found)) for rows, found in stream(model, tokenizer, asked, **arguments)]

    whole = batches(0)
    assert 3 < len(whole) < len(asked)
    for done in range(len(whole) + 2):
        assert batches(done) == whole[done:]
    found = generate(model, tokenizer, asked, 5, 1.5, seed=4, indices=indices, batch_tokens=SOME)
    placed = {row: story for rows, told in whole for row, story in zip(rows, told, strict=True)}
    assert [placed[row] for row in range(len(asked))] == stories(found)


def sampled_passes(model, tokenizer, asked, indices, max_new_tokens, ends):
    """One micro-batch that ends at `ends` too: its rows, how many tokens each wrote, and the forward passes it took."""
    model.generation_config.eos_token_id = ends
    with watched(model) as passes:
        arguments = dict(temperature=1.5, seed=7, indices=indices, batch_tokens=ALL)
        ((rows, found),) = stream(model, tokenizer, asked, max_new_tokens, **arguments)
    return rows, {row: g.tokens for row, g in zip(rows, found, strict=True)}, passes


@either_model
def test_prompts_are_read_once_and_finished_rows_leave_the_batch(fixture, request, questions):
    model, tokenizer = load(request.getfixturevalue(fixture))
    asked, indices = questions * 3, [i for i in range(3) for _ in questions]
    encoders = [model.get_encoder()] if model.config.is_encoder_decoder else []
    with watched(encoders[0] if encoders else model) as readings:
        rows, tokens, passes = sampled_passes(model, tokenizer, asked, indices, 8, list(range(1, 320, 5)))
    assert {1, 2, 3, 8} <= set(tokens.values()), "no ends at different times"
    distinct = [tokenizer(question)["input_ids"] for question in dict.fromkeys(asked[row] for row in rows)]
    assert without_padding(readings[0][0]) == distinct
    assert len(readings) == (1 if encoders else len(passes)), "the encoder runs once"
    going = [sum(tokens[row] > step for row in rows) for step in range(1, max(tokens.values()))]
    assert [len(fed(arguments)) for arguments, _ in passes] == [len(questions), *going]
    assert all(fed(arguments).shape[1] == 1 for arguments, _ in passes[1:]), "one new position a step"


@either_model
def test_every_step_computes_what_a_forward_without_cache_computes(fixture, request, questions):
    """While rows leave, and for so long that caches grow: the logits of every pass against those of plain forwards."""
    model, tokenizer = load(request.getfixturevalue(fixture))
    asked, indices, ends = questions[:4] * 2, [0] * 4 + [1] * 4, [1, 40, 80, 120, 160, 200]
    plain = {}  # (row, step) -> (the token that is fed, the logits that it and all before it give)
    for row, question in enumerate(asked):
        _, _, passes = sampled_passes(model, tokenizer, [question], [indices[row]], 100, ends)
        new = [int(fed(arguments)) for arguments, _ in passes[1:]]
        logits = all_logits(model, tokenizer(question)["input_ids"], new)
        plain |= {(row, step): pair for step, pair in enumerate(zip(new, logits, strict=True), 1)}
    rows, tokens, passes = sampled_passes(model, tokenizer, asked, indices, 100, ends)
    assert len(set(tokens.values())) > 4 and max(tokens.values()) > 80
    for step, (arguments, output) in enumerate(passes[1:], 1):
        waiting = [plain[row, step] for row in rows if tokens[row] > step]  # in whatever order the rows stand by now
        for token, logits in zip(fed(arguments)[:, 0].tolist(), output.logits[:, -1], strict=True):
            fits = [token == other and torch.allclose(logits, wanted, atol=1e-4) for other, wanted in waiting]
            waiting.pop(fits.index(True))


def by_the_library(model, tokenizer, asked, max_new_tokens, **arguments):
    """(text, tokens, finished) of each prompt by the library's own decoding loop, all in one batch."""
    two_sided = model.config.is_encoder_decoder
    tokenizer.padding_side = "right" if two_sided else "left"
    inputs = tokenizer(asked, return_tensors="pt", padding=True, return_token_type_ids=False)
    arguments = dict(do_sample=False, pad_token_id=tokenizer.pad_token_id) | arguments
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **arguments)
    named = model.generation_config.eos_token_id
    ends, found = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}, []
    for row in ids[:, 1 if two_sided else inputs["input_ids"].shape[1] :].tolist():
        at = next((place for place, token in enumerate(row) if token in ends), None)
        row = row if at is None else row[: at + 1]
        found.append((tokenizer.decode(row, skip_special_tokens=True), len(row), at is not None))
    return found


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5", "trained_run"])
def test_greedy_is_the_library_s_greedy_token_for_token(fixture, pad_is_eos, request, questions, chains):
    directory = request.getfixturevalue(fixture)
    trained = fixture == "trained_run"
    model, tokenizer = load(directory / "model" if trained else directory, pad_is_eos)
    asked = [prompts.prompt(p) for p in chains] if trained else questions
    for batch_tokens in (SOME, ALL):
        found = generate(model, tokenizer, asked, 9, batch_tokens=batch_tokens)
        assert stories(found) == by_the_library(model, tokenizer, asked, 9)


@either_model
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_any_of_the_ends_that_a_chat_model_names_ends_a_completion(fixture, pad_is_eos, request, questions):
    model, tokenizer = load(request.getfixturevalue(fixture), pad_is_eos)
    third = [greedy(model, tokenizer, question, 3)[2] for question in questions[:2]]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *third]
    found = generate(model, tokenizer, questions, max_new_tokens=7)
    assert found[0].finished and found[0].tokens <= 3 and found[1].finished and found[1].tokens <= 3
    assert stories(found) == by_the_library(model, tokenizer, questions, 7)


def test_the_tokenizer_s_end_ends_a_completion_that_the_model_s_config_does_not_name(trained_run, chains):
    model, tokenizer = load(trained_run / "model")
    for named in (None, 5, [5, 6]):
        model.generation_config.eos_token_id = named
        (found,) = generate(model, tokenizer, [prompts.prompt(chains[0])], max_new_tokens=20)
        assert found.finished and found.text == prompts.solution(chains[0])


# --- the beginning ---


@pytest.fixture
def with_bos(tiny_llama, chain_texts):
    """A model whose tokenizer puts <s> in front of every text."""
    from tokenizers.processors import TemplateProcessing

    model, _ = models.load_model(str(tiny_llama), device="cpu")
    tokenizer = build_tokenizer(chain_texts, 320)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    assert tokenizer("?")["input_ids"][0] == tokenizer.bos_token_id
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer


@pytest.mark.parametrize(
    "starts",
    [
        ["", ""],
        ["<s>", "<s>"],
        ["<s>", ""],
    ],
)
def test_a_prompt_has_one_first_token_whether_it_is_written_in_it_or_not(starts, with_bos):
    model, tokenizer = with_bos
    with watched(model) as passes:
        generate(model, tokenizer, [f"{starts[0]}v1 + n2 ?\n", f"{starts[1]}?\n"], 1)
    for ids in without_padding(passes[0][0]):
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


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
        found = generate(model, tokenizer, questions, max_new_tokens=8, temperature=1.5, seed=seed, batch_tokens=SOME)
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

    found = generate(model, tokenizer, [prompt] * 6000, 1, temperature, seed=5, indices=list(range(6000)))
    counts = Counter(g.text for g in found)
    assert surprise(counts, chances(temperature)) < 5
    for other in (temperature / 2, temperature * 2):
        assert surprise(counts, chances(other)) > 10, "the sample is too small to tell temperatures apart"


def narrowed(logits, temperature, top_k, top_p):
    """{id: probability}: the top_k likeliest, of these the fewest that hold top_p of the probability, by hand."""
    order = logits.argsort(descending=True)[: top_k or None]
    chances = dict(zip(order.tolist(), (logits[order] / temperature).double().softmax(-1).tolist(), strict=True))
    left, before = {}, 0.0
    for token, p in chances.items():
        if before < top_p:
            left[token] = p
        before += p
    return {token: p / sum(left.values()) for token, p in left.items()}


@either_model
@pytest.mark.parametrize("top_k, top_p", [(7, 1.0), (0, 0.3), (30, 0.6)])
def test_samples_follow_the_distribution_that_top_k_and_top_p_leave(fixture, top_k, top_p, request):
    """Two tokens, so that the second must follow its own distribution whatever number chose the first."""
    model, tokenizer = load(request.getfixturevalue(fixture))
    prompt, ids = "v3 + n4 ?\n", tokenizer("v3 + n4 ?\n")["input_ids"]

    def chances(top_k, top_p):
        found = Counter()
        for first, p in narrowed(next_logits(model, ids), 1.2, top_k, top_p).items():
            if first == tokenizer.eos_token_id:
                found[""] += p
                continue
            for second, q in narrowed(next_logits(model, ids, [first]), 1.2, top_k, top_p).items():
                found[tokenizer.decode([first, second], skip_special_tokens=True)] += p * q
        return found

    arguments = dict(temperature=1.2, seed=6, indices=list(range(4000)), top_k=top_k, top_p=top_p)
    counts = Counter(g.text for g in generate(model, tokenizer, [prompt] * 4000, 2, **arguments))
    wanted = chances(top_k, top_p)
    assert set(counts) <= set(wanted), "a token was drawn that top_k and top_p exclude"
    assert surprise(counts, wanted) < 5
    assert surprise(counts, chances(top_k, min(1, top_p + 0.2)) if top_p < 1 else chances(top_k + 1, top_p)) > 10


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([-math.inf, -1000.0, -20.0, -1.0, 0.0, 0.5, 1.0, 20.0]), min_size=1, max_size=8).filter(
        lambda row: max(row) > -1000
    ),
    st.one_of(st.sampled_from([0.0, 1 - 2**-24]), st.floats(0, 1, exclude_max=True, width=32)),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_no_number_draws_a_token_of_no_probability(row, number, temperature):
    """The token at which the cumulative probability passes the number, also at the two ends of what is drawn."""
    choose = Chooser(temperature, 1.0, 0, [numpy.array([number], numpy.float32)], "cpu")
    chances = (torch.tensor(row).double() / temperature).softmax(-1)
    token = choose(torch.tensor([row]), 0).item()
    assert chances[token] > 0
    assert chances[:token].sum() <= number + 1e-6 and chances[: token + 1].sum() >= number - 1e-6


@pytest.mark.parametrize("fixture, temperature", [("trained_run", 4.0), ("tiny_t5", 1.5)])
class TestASample:
    """Of a trained model and of an encoder-decoder; hot enough that texts differ."""

    @pytest.fixture
    def sample(self, fixture, temperature, request):
        directory = request.getfixturevalue(fixture)
        model, tokenizer = load(directory / "model" if fixture == "trained_run" else directory)

        def texts(asked, indices, seed=3, max_new_tokens=8, **arguments):
            arguments = dict(seed=seed, indices=indices, **arguments)
            return [g.text for g in generate(model, tokenizer, asked, max_new_tokens, temperature, **arguments)]

        return texts

    @pytest.fixture
    def alone(self, sample, questions):
        """The text of every (prompt, index), each drawn in a call of its own."""
        return {(q, i): sample([q], [i])[0] for q in questions[:9] for i in range(3)}

    def test_depends_on_its_prompt_seed_and_index_alone(self, sample, alone):
        assert len(set(alone.values())) > 20
        for seed, batch_tokens in enumerate((ALONE, SOME, ALL)):
            requests = random.Random(seed).sample(list(alone), len(alone))
            found = sample([q for q, _ in requests], [i for _, i in requests], batch_tokens=batch_tokens)
            assert found == [alone[key] for key in requests]
        (question, index), *_ = alone
        crowd = [question] * 40 + ["v2 + n1 ?\n", "Other.\n", question]
        assert sample(crowd, [*range(100, 142), index])[-1] == alone[question, index]
        assert sample([question] * 2, [index, index]) == [alone[question, index]] * 2

    def test_differs_by_seed_and_by_index(self, sample, questions):
        assert len(set(sample([questions[0]] * 12, list(range(12))))) > 8
        assert len({sample([questions[0]], [0], seed=seed)[0] for seed in range(12)}) > 8

    def test_has_index_0_unless_told_otherwise(self, sample, questions):
        assert sample(questions, None) == sample(questions, [0] * len(questions))

    def test_begins_the_same_however_long_it_may_be(self, sample, questions):
        asked, indices = questions * 2, [0] * len(questions) + [1] * len(questions)
        short, long = (sample(asked, indices, max_new_tokens=n) for n in (3, 10))
        assert sum(map(len, short)) < sum(map(len, long))
        for a, b in zip(short, long, strict=True):
            assert b.startswith(a.rstrip("\ufffd")), "but for the last character, of which bytes may be missing"


def test_every_prompt_seed_and_index_has_random_numbers_of_its_own():
    asked = list(itertools.product(["", "1", "1 1", "a", "a\n", "\ud800"], [0, 1, 11, -1], [0, 1, 11]))
    assert len({tuple(random_numbers(*key, 4)) for key in asked}) == len(asked)


def test_random_numbers_are_the_same_in_every_process_and_on_every_machine():
    assert request_seed("v1 + n2 ?\n", 3, 4) == 6023837132878048782
    assert random_numbers("v1 + n2 ?\n", 3, 4, 3).tolist() == [
        0.0761561393737793,
        0.8170205354690552,
        0.6252802610397339,
    ]


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
