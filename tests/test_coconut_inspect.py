"""What is said of thoughts is true: each number against the same one made slowly, without cache, batch or padding."""

import math
from collections import Counter
from dataclasses import replace

import numpy
import pytest
import torch

from lib import answers, prompts, tokenization
from lib.coconut import engine, generation, inspect, training
from lib.coconut.config import Config
from lib.errors import InputError
from lib.problems import make_problem
from lib.prompts import prompt
from lib.tasks import modular_chain, prosqa
from tests.conftest import small_llama, with_tokenizer
from tests.oracles import coconut as oracle

CHAINS = [*modular_chain.generate(12, n_operations=1, seed=1), *modular_chain.generate(20, n_operations=2, seed=2)]
TWO = CHAINS[12:]
WAYS = {
    "last_hidden": dict(source="last_hidden", markers=True),
    "without markers": dict(source="last_hidden", markers=False),
    "normalised": dict(source="normalised", markers=False),
    "second_to_last": dict(source="second_to_last", markers=True),
    "pause": dict(method="coconut_pause_as_thought", markers=True),
}
every_way = pytest.mark.parametrize("way", WAYS)


def texts_of(problems):
    return [prompt(p) + prompts.solution(p) for p in problems]


def random_thinker(texts, seed=0, **how):
    """(Coconut, tokenizer): untrained, every weight random and of a decent size, head and embeddings apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenization.build_tokenizer(texts, 400)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
    ids = dict(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=None)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **ids, max_position_embeddings=512, tie_word_embeddings=False))
    thinker = engine.wrap(Config(**how), model, tokenizer).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.7 if "embed" in name or "head" in name else 0.25))
            if weight.dim() == 1:
                weight.add_(1)
    return thinker, tokenizer


@pytest.fixture(scope="module")
def untrained():
    made = {}

    def make(way):
        if way not in made:
            made[way] = random_thinker(texts_of(CHAINS), **WAYS[way])
        return made[way]

    return make


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """(Coconut, tokenizer) of a tiny model that learned most of 32 chains by heart, in three seconds."""
    directory = tmp_path_factory.mktemp("taught")
    base = with_tokenizer(small_llama(texts_of(CHAINS)), texts_of(CHAINS), directory / "base")
    how = dict(steps=100, batch_size=32, learning_rate=2e-2, warmup_steps=10, decay_steps=20)
    config = Config(str(base), max_latent_stage=2, valid_problems=0, device="cpu", **WAYS["last_hidden"], **how)
    training.train(config, CHAINS, [], directory / "run")
    thinker, tokenizer, _, stage = engine.load(directory / "run" / "model", device="cpu")
    assert stage.thoughts == 2
    return thinker, tokenizer


# --- the same, by hand ---


def asked(thinker, tokenizer, problem, k):
    """The ids that a problem is asked with, and where its thoughts stand."""
    start, end, latent = thinker.markers
    ids = tokenizer(prompt(problem))["input_ids"] + [start] * (start is not None)
    return ids + [latent] * k + [end] * (end is not None), range(len(ids), len(ids) + k)


@torch.no_grad()
def fed(thinker, tokenizer, problem, k, given=(), positions=()):
    """(what each position is fed, the thoughts' places), one row read anew for each thought; `given` at `positions`."""
    ids, places = asked(thinker, tokenizer, problem, k)
    inputs = [thinker.model.get_input_embeddings().weight[i] for i in ids]
    for j, place in enumerate(places):
        states = [layer[0, place - 1] for layer in oracle.run(thinker.model, inputs).hidden_states]
        made = oracle.thought(thinker.source, thinker.model, states, thinker.markers[2])
        inputs[place] = given[j] if j in positions else made
    return inputs, places


@torch.no_grad()
def written(thinker, tokenizer, inputs, new):
    """The greedy text after these inputs, everything read anew for each token."""
    ids = []
    while len(ids) < new and tokenizer.eos_token_id not in ids:
        ids.append(oracle.run(thinker.model, inputs).logits[0, -1].argmax().item())
        inputs = [*inputs, thinker.model.get_input_embeddings().weight[ids[-1]]]
    return tokenizer.decode(ids, skip_special_tokens=True)


# --- thoughts ---


@every_way
def test_thoughts_are_what_a_model_run_anew_for_each_of_them_is_fed(untrained, way):
    thinker, tokenizer = untrained(way)
    some = CHAINS[8:16]  # of two lengths: a batch with padding
    found = inspect.thoughts_of(thinker, tokenizer, some, 3)
    assert found.shape == (8, 3, 32)
    for problem, row in zip(some, found, strict=True):
        inputs, places = fed(thinker, tokenizer, problem, 3)
        torch.testing.assert_close(row, torch.stack([inputs[p] for p in places]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("passes", [0, 1, 2, 5])
def test_of_thoughts_refined_in_parallel_the_last_pass_counts(passes):
    how = dict(method="coconut_jacobi", source="last_hidden", markers=True, jacobi_passes=passes)
    thinker, tokenizer = random_thinker(texts_of(CHAINS), **how)
    for problem in CHAINS[10:14]:
        ids, places = asked(thinker, tokenizer, problem, 4)
        with torch.no_grad():
            inputs = oracle.fed(thinker.model, ids, thinker.markers[2], "last_hidden", passes)
        (found,) = inspect.thoughts_of(thinker, tokenizer, [problem], 4)
        torch.testing.assert_close(found, torch.stack([inputs[p] for p in places]), atol=1e-4, rtol=1e-4)


def test_thoughts_keep_the_order_of_many_problems_and_no_thought_is_none(untrained):
    thinker, tokenizer = untrained("last_hidden")
    many = [CHAINS[i % 32] for i in range(150)]  # more than are read at once
    found = inspect.thoughts_of(thinker, tokenizer, many, 2)
    torch.testing.assert_close(found[128:150], found[:22], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=0.1)
    assert inspect.thoughts_of(thinker, tokenizer, many, 0).shape == (150, 0, 32)


@every_way
def test_a_thought_is_decoded_by_the_head_from_the_state_it_comes_from(untrained, way):
    thinker, tokenizer = untrained(way)
    for k in (0, 1, 3):
        problem = CHAINS[k]
        inputs, places = fed(thinker, tokenizer, problem, k)
        with torch.no_grad():
            shares = oracle.run(thinker.model, inputs).logits[0].softmax(-1)
        rows = inspect.decode(thinker, tokenizer, problem, k, top=6)
        assert len(rows) == k + 1
        for row, share in zip(rows, [*(shares[p - 1] for p in places), shares[-1]], strict=True):
            best = sorted(range(len(share)), key=lambda i: -share[i])[:6]
            assert [token for token, _ in row] == [tokenizer.decode([i]) for i in best]
            assert [p for _, p in row] == pytest.approx([share[i].item() for i in best], abs=1e-4)


def test_a_thought_that_is_the_last_state_decodes_as_the_softmax_of_its_logits(untrained):
    thinker, tokenizer = untrained("last_hidden")
    (states,) = inspect.thoughts_of(thinker, tokenizer, CHAINS[:1], 2)
    likely = thinker.model.lm_head(states).softmax(-1).max(-1).values.tolist()
    rows = inspect.decode(thinker, tokenizer, CHAINS[0], 2, top=10**6)  # more than there are tokens
    assert [row[0][1] for row in rows[:2]] == pytest.approx(likely, abs=1e-4)
    assert [sum(p for _, p in row) for row in rows] == pytest.approx([1, 1, 1], abs=1e-4)


def test_accuracy_by_thoughts_is_that_of_the_generations(taught):
    thinker, tokenizer = taught
    rows = inspect.accuracy_by_thoughts(thinker, tokenizer, CHAINS, [2, 0, 1], new=9)
    assert [row["thoughts"] for row in rows] == [2, 0, 1]
    for row in rows:
        k, right, tokens = row["thoughts"], 0, 0
        for problem in CHAINS:
            (found,) = generation.generate(thinker, tokenizer, [prompt(problem)], k, max_new_tokens=9)
            right += answers.is_correct(problem, found.text)
            tokens += found.tokens - k
        assert (row["accuracy"], row["tokens"]) == pytest.approx((right / 32, tokens / 32))
    assert rows[0]["accuracy"] > 0.5
    assert rows[1]["tokens"] > rows[0]["tokens"] + 1, "without thoughts the steps are written"


def test_answers_behind_the_published_marker_are_read_where_the_config_is_given(taught, monkeypatch):
    published = Config(answer_prefix="### ")
    stated = inspect.readable(["r3\n### 4", "r3\n#### 4", "none"], published)
    assert [answers.extract(text) for text in stated] == ["4", "4", None]
    assert answers.extract("r3\n### 4") is None, "the arbiter itself does not read it"
    monkeypatch.setattr(generation, "with_marker", lambda text, trained: "#### 99")
    for function, arguments in (
        (inspect.accuracy_by_thoughts, (TWO, [2])),
        (inspect.causal_checks, (TWO, 2)),
        (inspect.swapped_steps, (TWO,)),
    ):
        plain, read = function(*taught, *arguments), function(*taught, *arguments, trained=published)
        key = "unchanged" if function is inspect.swapped_steps else "accuracy"
        assert plain[0][key] > 0.3 and read[0][key] == 0


def test_a_model_without_thoughts_is_given_none():
    thinker, tokenizer = random_thinker(texts_of(CHAINS), method="cot")
    for call in (
        lambda k: inspect.thoughts_of(thinker, tokenizer, CHAINS[:2], k),
        lambda k: inspect.decode(thinker, tokenizer, CHAINS[0], k),
        lambda k: inspect.accuracy_by_thoughts(thinker, tokenizer, CHAINS[:2], [k], new=2),
        lambda k: inspect.causal_checks(thinker, tokenizer, CHAINS[:2], k, new=2),
        lambda k: inspect.node_probabilities(thinker, tokenizer, "v1 ?", "", ["r1"], k),
    ):
        assert call(0) is not None
        for k in (1, -1):
            with pytest.raises(InputError, match=f"cannot be given {k} thoughts; ask for"):
                call(k)


# --- causal checks ---


def test_each_change_is_what_its_name_says():
    thoughts = torch.randn(5, 4, 8)
    new = {kind: inspect.changed(kind, thoughts, seed=3) for kind in inspect.KINDS}
    assert all(value.shape == thoughts.shape for value in new.values())
    assert torch.equal(new["kept"], thoughts) and not new["zeroed"].any()
    assert all(torch.allclose(row, sum(thoughts) / 5, atol=1e-6) for row in new["averaged"])
    assert all(torch.equal(new["swapped"][i], thoughts[(i + 1) % 5]) for i in range(5))
    torch.testing.assert_close(new["noised"].norm(dim=-1), thoughts.norm(dim=-1))
    cosines = torch.cosine_similarity(new["noised"], thoughts, dim=-1)
    assert cosines.abs().max() < 0.99 and cosines.mean().abs() < 0.4, "noise points anywhere"
    assert torch.equal(new["noised"], inspect.changed("noised", thoughts, seed=3))
    assert not torch.equal(new["noised"], inspect.changed("noised", thoughts, seed=4))
    with pytest.raises(AssertionError, match="unknown change 'turned'"):
        inspect.changed("turned", thoughts)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_shuffled_thoughts_are_all_there_and_never_in_their_own_order(k):
    thoughts = torch.arange(60 * k).reshape(60, k, 1).float()
    found = inspect.changed("shuffled", thoughts)
    assert torch.equal(found.sort(1).values, thoughts)
    assert [row for row in range(60) if torch.equal(found[row], thoughts[row])] == ([] if k > 1 else list(range(60)))
    assert len(Counter(map(str, (found - found.min(1, keepdim=True).values).tolist()))) == math.factorial(k) - (k > 1)


@every_way
def test_kept_thoughts_leave_every_letter_as_it_is_generated(untrained, way):
    thinker, tokenizer = untrained(way)
    own = inspect.thoughts_of(thinker, tokenizer, CHAINS, 2)
    plain = generation.generate(thinker, tokenizer, [prompt(p) for p in CHAINS], 2, max_new_tokens=6)
    for positions in ([], [0], [0, 1]):
        found = inspect.answers_with(thinker, tokenizer, CHAINS, own, positions, 6)
        assert found == [g.text for g in plain]


def test_kept_thoughts_leave_answers_that_end_as_they_are(taught):
    thinker, tokenizer = taught
    many = [CHAINS[i % 32] for i in range(150)]
    own = inspect.thoughts_of(thinker, tokenizer, many, 2)
    plain = generation.generate(thinker, tokenizer, [prompt(p) for p in many], 2, max_new_tokens=12)
    assert inspect.answers_with(thinker, tokenizer, many, own, [0, 1], 12) == [g.text for g in plain]
    assert len({g.text for g in plain}) > 3 and all(g.finished for g in plain)


@every_way
def test_a_thoughts_own_value_put_back_changes_no_logit(untrained, way):
    thinker, tokenizer = untrained(way)
    ids = [tokenizer(prompt(p))["input_ids"] for p in CHAINS[8:16]]
    own = inspect.thoughts_of(thinker, tokenizer, CHAINS[8:16], 3)

    def logits(edit):
        with torch.inference_mode():
            return generation.read(thinker, 3, edit, thinker.model, tokenizer, ids)[0]

    plain = logits(None)
    for place in range(3):
        found = logits(lambda j, there, place=place: own[:, j] if j == place else there)
        torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-5)
        moved = logits(lambda j, there, place=place: own[:, j] + 1 if j == place else there)
        assert (moved - plain).abs().max() > 0.1, "a thought of another value does"


@pytest.mark.parametrize("positions", [[0], [1], [2], [0, 2], [0, 1, 2]])
def test_answers_with_changed_thoughts_are_those_of_a_model_run_anew(untrained, positions):
    thinker, tokenizer = untrained("last_hidden")
    some = CHAINS[8:16]
    other = inspect.changed("noised", inspect.thoughts_of(thinker, tokenizer, some, 3))
    found = inspect.answers_with(thinker, tokenizer, some, other, positions, 4)
    for problem, given, text in zip(some, other, found, strict=True):
        inputs, _ = fed(thinker, tokenizer, problem, 3, given, positions)
        assert text == written(thinker, tokenizer, inputs, 4)
    assert found != inspect.answers_with(thinker, tokenizer, some, other, [], 4)


def test_exchanging_thoughts_with_the_same_problem_changes_nothing(taught):
    thinker, tokenizer = taught
    rows = inspect.causal_checks(thinker, tokenizer, [TWO[0]] * 3, 2)
    by = {row["change"]: row for row in rows}
    assert by["swapped"] == {**by["kept"], "change": "swapped"} and by["averaged"]["accuracy"] == by["kept"]["accuracy"]
    assert all(row["answer of the other"] is None for row in rows), "no pair has two answers"
    (row, _) = inspect.swapped_steps(thinker, tokenizer, [TWO[0]] * 3)
    assert row == {"thought": 1, "pairs": 0, "predicted": None, "unchanged": None}


def test_causal_checks_count_right_answers_and_those_of_the_next_problem(taught):
    thinker, tokenizer = taught
    rows = inspect.causal_checks(thinker, tokenizer, TWO, 2, new=8)
    assert [row["change"] for row in rows] == list(inspect.KINDS)
    own = torch.stack([torch.stack([i[p] for p in ps]) for i, ps in (fed(thinker, tokenizer, p, 2) for p in TWO)])
    others = [*TWO[1:], TWO[0]]
    for row in rows:
        right = other = pairs = 0
        for problem, following, given in zip(TWO, others, inspect.changed(row["change"], own), strict=True):
            text = written(thinker, tokenizer, fed(thinker, tokenizer, problem, 2, given, (0, 1))[0], 8)
            right += answers.extract(text) == problem.answer
            pairs += problem.answer != following.answer
            other += problem.answer != following.answer and answers.extract(text) == following.answer
        assert row["accuracy"] == pytest.approx(right / 20) and pairs
        assert row["answer of the other"] == pytest.approx(other / pairs)


def test_one_exchanged_thought_is_counted_by_what_must_follow_from_it(taught):
    thinker, tokenizer = taught
    rows = inspect.swapped_steps(thinker, tokenizer, TWO, new=8)
    own = [torch.stack([i[p] for p in ps]) for i, ps in (fed(thinker, tokenizer, p, 2) for p in TWO)]
    for j, row in enumerate(rows):
        counted = Counter()
        for i, problem in enumerate(TWO):
            following = TWO[(i + 1) % 20]
            value = int(following.steps[j][1:])
            for operator, operand in operations(problem)[j + 1 :]:
                value = {"+": value + operand, "-": value - operand, "*": value * operand}[operator] % 5
            if str(value) == problem.answer:
                continue
            inputs, _ = fed(thinker, tokenizer, problem, 2, own[(i + 1) % 20], (j,))
            stated = answers.extract(written(thinker, tokenizer, inputs, 8))
            counted.update(pairs=1, predicted=stated == str(value), unchanged=stated == problem.answer)
        shares = {key: pytest.approx(counted[key] / counted["pairs"]) for key in ("predicted", "unchanged")}
        assert row == {"thought": j + 1, "pairs": counted["pairs"], **shares}
    assert len(rows) == 2 and rows[0]["unchanged"] > 0


def test_thoughts_are_exchanged_only_between_problems_of_as_many_steps(taught):
    with pytest.raises(InputError, match="equally many steps"):
        inspect.swapped_steps(*taught, CHAINS)


def operations(problem):
    words = problem.question.removesuffix(" ?").split()[1:]
    return [(o, int(n[1:])) for o, n in zip(words[::2], words[1::2], strict=True)]


@pytest.mark.parametrize("modulus", [3, 5, 7])
def test_the_answer_from_given_results_is_that_of_the_rest_of_the_chain(modulus):
    for problem in modular_chain.generate(40, n_operations=4, modulus=modulus, seed=9):
        for j in range(1, 5):
            assert modular_chain.answer_from(problem, problem.steps[:j]) == problem.answer
            for start in range(modulus):
                rest = modular_chain.problem(start, tuple(operations(problem)[j:]), modulus).answer if j < 4 else start
                given = (*problem.steps[: j - 1], f"r{start}")
                assert modular_chain.answer_from(problem, given) == str(rest)


# --- geometry ---


def test_geometry_is_what_numpy_finds(untrained):
    thinker, tokenizer = untrained("last_hidden")
    rows = inspect.geometry(thinker, tokenizer, CHAINS, 3)
    assert [row["of"] for row in rows] == ["thought 1", "thought 2", "thought 3", "embeddings"]
    thoughts = inspect.thoughts_of(thinker, tokenizer, CHAINS, 3).double().numpy()
    table = thinker.model.get_input_embeddings().weight.detach().double().numpy()
    for row, vectors in zip(rows, [*thoughts.transpose(1, 0, 2), table], strict=True):
        norms = numpy.linalg.norm(vectors, axis=1)
        cosines = (vectors @ vectors.T) / numpy.outer(norms, norms)
        variances = numpy.linalg.eigvalsh(numpy.cov(vectors.T)).clip(1e-15)
        shares = variances / variances.sum()
        assert row["norm"] == pytest.approx(norms.mean(), rel=1e-4)
        assert row["cosine"] == pytest.approx(cosines[~numpy.eye(len(norms), dtype=bool)].mean(), abs=1e-4)
        assert row["rank"] == pytest.approx(math.exp(-(shares * numpy.log(shares)).sum()), rel=1e-3)


def test_thoughts_that_are_all_alike_have_cosine_and_rank_1_and_one_problem_has_no_pair(untrained):
    thinker, tokenizer = untrained("pause")
    row = inspect.geometry(thinker, tokenizer, CHAINS, 1)[0]
    assert row["cosine"] == pytest.approx(1, abs=1e-5) and row["rank"] == pytest.approx(1, abs=1e-3)
    assert inspect.geometry(thinker, tokenizer, CHAINS[:1], 1)[0]["cosine"] is None


# --- search ---


@pytest.fixture(scope="module", params=["symbol", "text"])
def searching(request):
    """(Coconut, tokenizer, problems) of a ProsQA form, untrained."""
    problems = prosqa.generate(6, form=request.param, n_nodes=16, min_hops=2, max_hops=4, seed=5)
    return *random_thinker(texts_of(problems), **WAYS["last_hidden"]), problems


def naive_probability(thinker, tokenizer, problem, prefix, name, k):
    """The product of the softmaxes of a name's tokens, everything read anew for each of them."""
    inputs, _ = fed(thinker, tokenizer, problem, k)
    ids = tokenizer(prefix + name, add_special_tokens=False)["input_ids"]
    forced = len(tokenizer(prefix.rstrip(), add_special_tokens=False)["input_ids"]) if prefix else 0
    share = 1.0
    for place, token in enumerate(ids):
        if place >= forced:
            with torch.no_grad():
                share *= oracle.run(thinker.model, inputs).logits[0, -1].softmax(-1)[token].item()
        inputs = [*inputs, thinker.model.get_input_embeddings().weight[token]]
    return share


def test_node_probabilities_are_products_of_softmaxes_and_siblings_share_at_most_1(searching):
    thinker, tokenizer, problems = searching
    problem = problems[0]
    names = [*problem.meta["names"], "no token of its own"]  # so that names differ in their number of tokens
    for prefix, k in (("", 0), ("", 2), ("Every ", 1), ("Tom is a ", 0)):
        found = inspect.node_probabilities(thinker, tokenizer, problem.question, prefix, names, k)
        assert list(found) == names and sum(found.values()) <= 1 + 1e-6
        for name, share in found.items():
            assert 0 <= share <= 1
            assert share == pytest.approx(naive_probability(thinker, tokenizer, problem, prefix, name, k), rel=1e-3)
    assert inspect.node_probabilities(thinker, tokenizer, problem.question, "", [], 1) == {}


def test_the_last_blank_of_a_prefix_counts_as_part_of_the_name(searching):
    """Joined to the name by the tokenizer, it once made every name certain."""
    thinker, tokenizer, problems = searching
    (share,) = inspect.node_probabilities(thinker, tokenizer, problems[0].question, "Every ", ["lempus"], 1).values()
    assert share < 0.9


def test_a_search_tree_holds_every_node_up_to_the_target_with_what_was_asked_of_it(searching):
    thinker, tokenizer, problems = searching
    for problem in problems[:3]:
        symbols, names = problem.meta["proof"] == "symbols", problem.meta["names"]
        tree = inspect.search_tree(thinker, tokenizer, problem, [0, 1, 2])
        hops = {tree["root"]: 0}
        for hop in range(1, 20):
            for a, b in problem.meta["edges"]:
                if hops.get(names[a]) == hop - 1:
                    hops.setdefault(names[b], hop)
        depth = max(len(problem.steps), 3 if symbols else 2)
        assert {node["name"]: node["hop"] for node in tree["nodes"]} == {n: h for n, h in hops.items() if h <= depth}
        assert tree["path"][0] == tree["root"] and tree["path"][-1] == tree["target"]
        assert [hops[name] for name in tree["path"]] == list(range(len(problem.steps) + 1))
        assert tree["false"] not in hops and tree["false"] == names[problem.meta["neg_target"]]
        assert [row["hop"] for row in tree["asked"]] == ([1, 2, 3] if symbols else [1, 1, 2])
        edges = {(names[a], names[b]) for a, b in problem.meta["edges"]}
        farther = {(a, b) for a, b in edges if a in hops and hops[b] == hops[a] + 1 and hops[b] <= depth}
        assert {tuple(edge) for edge in tree["edges"]} == farther
        for row in tree["asked"]:
            k, hop = row["thoughts"], row["hop"]
            prefix = "" if symbols else "Every " if k else f"{tree['root']} is a "
            level = [node for node in tree["nodes"] if node["hop"] == hop]
            level += [tree["unreached"]] if hop == len(problem.steps) else []
            for node in level:
                naive = naive_probability(thinker, tokenizer, problem, prefix, node["name"], k)
                assert node["shares"][k] == pytest.approx(naive, rel=1e-3)
            assert sum(node["shares"][k] for node in level) + row["elsewhere"] == pytest.approx(1)
            elsewhere = [node for node in tree["nodes"] if node["hop"] != hop]
            assert not any(k in node["shares"] for node in elsewhere)


def test_heights_are_those_of_the_definition_that_is_asked_for(searching):
    thinker, tokenizer, _ = searching
    #  0 -> 2 -> 3 -> 4, 0 -> 5, 2 -> 5;  1 -> 6
    edges, names = [[0, 2], [2, 3], [3, 4], [0, 5], [2, 5], [1, 6]], [f"n{i}" for i in range(7)]
    meta = dict(names=names, edges=edges, root=0, target=4, neg_target=6, proof="symbols")
    problem = make_problem("n0 n2 ? n4 n6 : n0", ["n2", "n3", "n4"], "n4", "prosqa", **meta)
    for longest, expected in ((False, 1), (True, 3)):
        tree = inspect.search_tree(thinker, tokenizer, problem, [0], longest)
        high = {node["name"]: node["height"] for node in tree["nodes"]}
        assert tree["longest"] is longest and high["n0"] == expected and high["n4"] == high["n5"] == 0
        assert tree["unreached"]["height"] == 0 and tree["unreached"]["shares"] == {}


def test_a_search_tree_with_another_false_candidate_differs_only_there(searching):
    thinker, tokenizer, problems = searching
    problem = problems[0]
    hop = len(problem.steps)
    k = hop - 1 if problem.meta["proof"] == "symbols" else hop
    tree = inspect.search_tree(thinker, tokenizer, problem, [k])
    assert list(tree["unreached"]["shares"]) == [k]
    unreached = set(problem.meta["names"]) - {node["name"] for node in tree["nodes"]} - {tree["false"]}
    other = replace(problem, meta={**problem.meta, "neg_target": problem.meta["names"].index(sorted(unreached)[0])})
    assert inspect.search_tree(thinker, tokenizer, other, [k])["nodes"] == [
        {**node, "shares": {k: pytest.approx(share) for k, share in node["shares"].items()}} for node in tree["nodes"]
    ]
