"""Distillation: targets against every way to write a group, the sparse loss against whole tables, and training."""

import json
import math
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import alignment, generation, models, prompts, sft
from lib.distillation import targets, teacher, training
from lib.distillation.targets import Vocabularies
from lib.distillation.teacher import Scored
from lib.errors import InputError
from lib.prompts import Example
from lib.tasks import word_problems
from lib.tokenization import build_sentence_tokenizer, build_tokenizer, build_word_tokenizer
from tests.oracles import distillation as oracle

PROBLEMS = word_problems.generate(60)
TEXTS = [prompts.solution(p) for p in PROBLEMS] + [p.question for p in PROBLEMS]
STEPS = dict(steps=4, batch_size=8, log_steps=1, valid_problems=4, device="cpu", warmup_steps=1)


@pytest.fixture(scope="module")
def both():
    """A byte-level teacher and a student that cuts as T5 does."""
    return Vocabularies(build_tokenizer(TEXTS, 400), build_sentence_tokenizer(TEXTS, 200))


def scored_at_random(tokenizer, text, seed=0, k=None, sharpness=3.0):
    """(Scored, whole log-probabilities) of a teacher that believes anything."""
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    generator = torch.Generator().manual_seed(seed)
    logps = (sharpness * torch.randn(len(ids), len(tokenizer), generator=generator)).double().log_softmax(-1)
    best = logps.topk(k or len(tokenizer))
    own = logps[range(len(ids)), ids].numpy()
    return Scored(numpy.array(ids), own, best.indices.numpy(), best.values.numpy()), logps


# ----- the loss
def random_targets(seed, positions=6, vocabulary=11, k=3):
    """(logits, ids, mass, tail) in double precision; the last position is a point mass."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.double)
    ids = torch.stack([torch.randperm(vocabulary, generator=generator)[:k] for _ in range(positions)])
    whole = torch.rand(positions, k + 1, generator=generator, dtype=torch.double)
    whole = whole / whole.sum(1, keepdim=True)
    mass, tail = whole[:, :k].clone(), whole[:, k].clone()
    mass[-1], tail[-1] = torch.tensor([1.0, 0.0, 0.0]), 0.0
    ids[-1, 1:] = 0  # as a row that is filled up
    return logits, ids, mass, tail


@pytest.mark.parametrize("seed", range(5))
def test_the_sparse_loss_and_its_gradient_are_those_of_whole_tables(seed):
    logits, ids, mass, tail = random_targets(seed)
    fast, slow = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, wanted = training.sparse_kl(fast, ids, mass, tail), oracle.divergence(slow, ids, mass, tail)
    assert torch.allclose(found, wanted, atol=1e-12)
    weights = torch.arange(1.0, 7.0)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert torch.allclose(fast.grad, slow.grad, atol=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_the_loss_is_never_negative_and_0_where_both_agree(seed):
    logits, ids, mass, tail = random_targets(seed)
    assert (training.sparse_kl(logits, ids, mass, tail) >= -1e-12).all()
    q = logits.softmax(-1).gather(1, ids)[:-1]
    same = training.sparse_kl(logits[:-1], ids[:-1], q, 1 - q.sum(1))
    assert torch.allclose(same, torch.zeros(len(same), dtype=torch.double), atol=1e-9)


def test_without_the_tail_the_loss_could_be_negative():
    """As published: of a student that gives a token 0.9 where the teacher gave it 0.6."""
    assert 0.6 * math.log(0.6 / 0.9) < 0
    logits = torch.tensor([[0.9, 0.05, 0.05]]).log()
    found = training.sparse_kl(logits, torch.tensor([[0]]), torch.tensor([[0.6]]), torch.tensor([0.4]))
    assert found.item() == pytest.approx(0.6 * math.log(0.6 / 0.9) + 0.4 * math.log(0.4 / 0.1), abs=1e-6)


def test_a_point_mass_is_a_sample():
    logits = torch.randn(7, 13)
    ids = torch.randint(0, 13, (7, 1))
    found = training.sparse_kl(logits, ids, torch.ones(7, 1), torch.zeros(7))
    assert torch.allclose(found, torch.nn.functional.cross_entropy(logits, ids[:, 0], reduction="none"), atol=1e-6)


def test_a_student_that_is_sure_of_something_else_has_a_finite_loss():
    logits = torch.tensor([[300.0, 0.0, 0.0]], requires_grad=True)
    found = training.sparse_kl(logits, torch.tensor([[1]]), torch.tensor([[1.0]]), torch.tensor([0.0]))
    assert found.item() == pytest.approx(300)
    found.backward()
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


@pytest.mark.parametrize("gap", [1, 5, 10, 16, 20, 40, 80])
def test_a_student_that_is_too_sure_is_pulled_back(gap):
    """Where 1 - q is rounding, the tail still pulls: against whole tables in double precision."""
    ids, mass, tail = torch.tensor([[0, 0]]), torch.tensor([[0.7, 0.0]]), torch.tensor([0.3])
    fast = torch.tensor([[float(gap), 0.0, 0.5]], requires_grad=True)
    slow = fast.detach().double().requires_grad_()
    found, wanted = training.sparse_kl(fast, ids, mass, tail), oracle.divergence(slow, ids, mass, tail)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    found.sum().backward()
    wanted.sum().backward()
    assert torch.allclose(fast.grad.double(), slow.grad, atol=1e-5)


# ----- targets
def as_dicts(found):
    """A dictionary a position."""
    return [
        {int(i): float(p) for i, p in zip(ids, mass, strict=True) if p > 0}
        for ids, mass in zip(found.ids, found.mass, strict=True)
    ]


def check_sound(found, student, text):
    """What holds of any targets."""
    ids = [*student(text, add_special_tokens=False)["input_ids"], student.eos_token_id]
    assert len(found.ids) == len(found.mass) == len(found.tail) == len(found.kinds) == len(ids)
    assert numpy.allclose(found.mass.sum(1) + found.tail, 1, atol=1e-5) and (found.mass >= 0).all()
    assert (found.tail >= 0).all() and (found.ids >= 0).all() and (found.ids < len(student)).all()
    for row, token in zip(as_dicts(found), ids, strict=True):
        assert token in row, "what stands there is always taught"
    for row, mass in zip(found.ids, found.mass, strict=True):
        named = [i for i, p in zip(row.tolist(), mass.tolist(), strict=True) if p > 0]
        assert len(named) == len(set(named)), "one entry a token"


pieces = st.lists(
    st.sampled_from(
        ["<<3+4=7>>", "\n", " ", "  ", "buns", "🎉", "½", "é", "’", "12", ".", "#### 7", "The answer is 3"]
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(pieces.map("".join), st.sampled_from(targets.WAYS), st.integers(0, 99))
@example("", "offsets", 0)
@example("\n\n", "offsets", 0)
@example("🎉🎉", "dtw", 0)
def test_any_text_gets_sound_targets(both, text, way, seed):
    scored, _ = scored_at_random(both.teacher, text, seed, k=5)
    check_sound(targets.build(way, both, text, scored, text), both.student, text)


@pytest.mark.parametrize("seed", range(3))
def test_the_chunk_rule_is_the_share_of_every_way_to_write_a_group(both, seed, monkeypatch):
    monkeypatch.setattr(targets, "LEAST", 0.0)
    for text in [prompts.solution(p) for p in PROBLEMS[4 * seed : 4 * seed + 4]] + [TEXTS[70 + seed]]:
        scored, logps = scored_at_random(both.teacher, text, seed)
        found = as_dicts(targets.build("offsets", both, text, scored, text))
        left, right = (alignment.tokens(t, text) for t in (both.teacher, both.student))
        own = [*right.ids, both.student.eos_token_id]
        placed = targets.place(left, right, text, text)
        border = compared = 0
        for (i, top), (j, other) in targets.merged(placed):
            ids = scored.ids.tolist()
            ways = oracle.ways(both.teacher, both.student, text, ids, logps, (i, top), border)
            ends = [end for _, end in (*right.spans, (len(text), len(text)))][j:other]
            inside = [len(both.teacher.decode(ids[: q + 1])) for q in range(i, top - 1)]
            wanted = oracle.conditional(ways, tuple(own[j:other]), ends, border, inside, scored.logps[i : top - 1])
            for row, exact in zip(found[j:other], wanted, strict=True):
                compared += 1
                for token, p in exact.items():
                    assert row.get(token, 0.0) == pytest.approx(p, abs=1e-6), (text, own[j:other])
                assert all(token in exact for token in row)
            border = right.spans[other - 1][1] if other <= len(right) else border
        assert compared == len(own)


def told(tokenizer, ids, likely):
    """Scored of tokens `ids`, of which {token: probability} are given a position; what is not given is the tail."""
    width = max(map(len, likely))
    top = [[*row, *[i for i in range(len(tokenizer)) if i not in row]][:width] for row in likely]
    with numpy.errstate(divide="ignore"):
        logps = numpy.log([[row.get(i, 0.0) for i in line] for row, line in zip(likely, top, strict=True)])
        own = numpy.log([row.get(i, 0.0) for row, i in zip(likely, ids, strict=True)])
    return Scored(numpy.array(ids), own, numpy.array(top), logps)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_taught_bounds_the_truth(seed):
    """A teacher of tokens of one to three letters, a student of single letters. The truth: every text that the teacher
    might have written. A student's letter is at least as likely as taught, and at most that and the tail."""
    words, letters = ["a", "b", "ab", "ba", "aab", "abb"], ["a", "b"]
    teacher_side = build_word_tokenizer([" ".join(letters)])
    teacher_side.add_tokens([word for word in words if word not in teacher_side.get_vocab()])
    both = Vocabularies(teacher_side, build_tokenizer(["a"], 258))
    places = [teacher_side.get_vocab()[word] for word in words]
    rng = numpy.random.default_rng(seed)
    made: dict[tuple, numpy.ndarray] = {}

    def probabilities(ids):
        return made.setdefault(tuple(ids), rng.dirichlet(numpy.full(len(words), 0.7)))

    everything = oracle.every_text(words, probabilities, 4)
    for chosen in rng.integers(0, len(words), (6, 2)):
        text = "".join(words[i] for i in chosen)
        if teacher_side(text)["input_ids"] != [places[i] for i in chosen]:
            continue
        likely = [dict(zip(places, probabilities(chosen[:at]), strict=True)) for at in range(2)]
        ids = [places[i] for i in chosen] + [1]
        found = targets.build("offsets", both, text, told(teacher_side, ids, [*likely, {1: 1.0}]), text)
        ends = numpy.cumsum([len(words[i]) for i in chosen])
        for at in range(len(text)):
            # the tokens before the one that writes this letter are as they are
            before = int(numpy.searchsorted(ends, at, side="right"))
            known = "".join(words[i] for i in chosen[:before])
            kept = tuple(chosen[:before])
            going = oracle.every_text(words, lambda ids, kept=kept: probabilities((*kept, *ids)), 4 - before)
            alike = {known + t: p for t, p in going.items() if (known + t).startswith(text[:at])}
            total = sum(p for t, p in alike.items() if len(t) > at)
            for letter in letters:
                truth = sum(p for t, p in alike.items() if t[at : at + 1] == letter) / total
                (token,) = both.student(letter)["input_ids"]
                taught = as_dicts(found)[at].get(token, 0.0)
                assert taught - 1e-4 <= truth <= taught + found.tail[at] + 1e-4
    assert len(everything) > 10


def test_the_stem_of_a_word_is_not_taught_to_go_on():
    """A teacher that would rather have written "bun" than "buns": what comes after ▁bun is mostly not s."""
    texts = ["two buns", "two bun", "two", "bun s s"] * 9
    both = Vocabularies(build_word_tokenizer(texts), build_sentence_tokenizer(["two bun"] * 9 + ["s"], 40))
    names = both.teacher.get_vocab()
    assert both.student.tokenize("two buns") == ["▁two", "▁bun", "s"]
    ids = [names["two"], names[" buns"], 1]
    likely = [{ids[0]: 1.0}, {names[" buns"]: 0.1, names[" bun"]: 0.9}, {1: 1.0}]
    found = targets.build("offsets", both, "two buns", told(both.teacher, ids, likely), "two buns")
    place = both.student.get_vocab()
    assert as_dicts(found)[1] == {place["▁bun"]: 1.0}
    assert as_dicts(found)[2] == pytest.approx({place["s"]: 0.1}) and found.tail[2] == pytest.approx(0.9)


def test_what_the_teacher_held_for_impossible_is_a_tail():
    """Text that the teacher would never have cut so: what stands there has no mass, everything else has it all."""
    texts = ["two buns", "two"] * 9
    both = Vocabularies(build_word_tokenizer(texts), build_sentence_tokenizer(["two bun"] * 9 + ["s"], 40))
    names = both.teacher.get_vocab()
    ids = [names["two"], names[" buns"], 1]
    likely = [{ids[0]: 1.0}, {names["two"]: 1.0, names[" buns"]: 0.0}, {1: 1.0}]
    found = targets.build("offsets", both, "two buns", told(both.teacher, ids, likely), "two buns")
    assert numpy.isfinite(found.mass).all() and numpy.allclose(found.mass.sum(1) + found.tail, 1)
    assert found.mass[2].sum() == 0 and found.tail[2] == 1


def test_what_the_students_tokens_hold_already_is_certain():
    """A line break that was unlikely is behind ▁bun: what follows it is as sure as the teacher was of "buns"."""
    texts = ["two\nbuns", "buns", "two cats"] * 9
    both = Vocabularies(build_word_tokenizer(texts), build_sentence_tokenizer(["two bun"] * 9 + ["s"], 40))
    names = both.teacher.get_vocab()
    ids = [names["two"], names["\n"], names["buns"], 1]
    likely = [{ids[0]: 1.0}, {ids[1]: 0.1, names[" cats"]: 0.9}, {ids[2]: 1.0}, {1: 1.0}]
    text = "two\nbuns"
    found = targets.build("offsets", both, text, told(both.teacher, ids, likely), text)
    place = both.student.get_vocab()
    assert as_dicts(found)[1] == pytest.approx({place["▁bun"]: 0.1}) and found.tail[1] == pytest.approx(0.9)
    assert as_dicts(found)[2] == pytest.approx({place["s"]: 1.0})


def fallback_tokenizer():
    """As Llama 2's: ▁ for blanks, letters it does not know as bytes <0x0A>."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abt", "▁t", "▁a"]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)},
        merges=[("▁", "t"), ("▁", "a")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_a_byte_is_the_letter_it_stands_for():
    teacher_side = fallback_tokenizer()
    both = Vocabularies(teacher_side, build_tokenizer(["a"], 258))
    names = teacher_side.get_vocab()
    assert alignment.tokens(teacher_side, "a\né").written == ("▁a", "\n", "\ufffd", "\ufffd")
    ids = [names["▁a"], names["b"], 1]
    likely = [{ids[0]: 1.0}, {ids[1]: 0.5, names["<0x0A>"]: 0.3, names["<0xC3>"]: 0.2}, {1: 1.0}]
    found = targets.build("offsets", both, "ab", told(teacher_side, ids, likely), "ab")
    (newline,), (letter,) = (both.student(text)["input_ids"] for text in ("\n", "b"))
    assert as_dicts(found)[1] == pytest.approx({letter: 0.5, newline: 0.3})


def test_the_blank_that_a_tokenizer_puts_first_is_not_taught():
    teacher_side = fallback_tokenizer()
    both = Vocabularies(teacher_side, build_tokenizer(["a"], 258))
    names = teacher_side.get_vocab()
    ids = [names["▁a"], 1]
    found = targets.build(
        "offsets", both, "a", told(teacher_side, ids, [{ids[0]: 0.6, names["▁t"]: 0.4}, {1: 1.0}]), "a"
    )
    (a,), (t,) = (both.student(text)["input_ids"] for text in "at")
    assert as_dicts(found)[0] == pytest.approx({a: 0.6, t: 0.4})


def test_steps_are_shared_as_whole_lines(both):
    """The step "7" is not the 7 of the answer 17."""
    text = "7\n#### 17"
    scored, _ = scored_at_random(both.teacher, text, 0, k=4)
    assert set(targets.build("offsets", both, text, scored, " The answer is 17").kinds) == {"point"}
    kinds = targets.build("offsets", both, text, scored, "\n7\nThe answer is 17").kinds
    assert kinds.count("point") == len(kinds) - 1 and kinds[:2].count("point") == 1


def test_what_the_student_cannot_write_is_not_taught_as_unknown(both):
    text = "2 buns"
    ids = both.teacher(text)["input_ids"]
    strange = both.teacher.get_vocab()["~"]
    assert both.student.unk_token_id in both.student("~")["input_ids"]
    likely = [{ids[0]: 0.5, strange: 0.5}, *({i: 1.0} for i in ids[1:]), {1: 1.0}]
    found = targets.build("offsets", both, text, told(both.teacher, [*ids, 1], likely), text)
    assert both.student.unk_token_id not in as_dicts(found)[0] and found.tail[0] == pytest.approx(0.5)


def test_a_text_that_spells_a_special_token_is_refused(both):
    for side in (both.teacher, both.student):
        with pytest.raises(InputError, match="<eos>"):
            alignment.tokens(side, "a <eos> b")


def test_long_texts_without_blanks_cost_no_more_a_letter(both):
    """What stands in front of a group is looked at for some letters only."""
    for n in (50, 400):
        text = "ab" * n
        scored, _ = scored_at_random(both.teacher, text, 0, k=3)
        both.known.clear()
        targets.build("offsets", both, text, scored, text)
        assert max(len(before) for before, _ in both.known) <= targets.CONTEXT


def test_tokenizers_that_hide_their_blanks_are_refused():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(InputError, match="WordPiece tokenizer"):
        targets.pieces(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"))


@pytest.mark.parametrize("way", ["offsets", "dtw", "dtw_normalised"])
def test_with_one_tokenizer_the_teachers_distribution_is_the_target(both, way):
    """Tokens are letters here, so that none joins the one before. By warping, the end of the sequence is a sample."""
    same = Vocabularies(build_tokenizer(["a"], 258), build_tokenizer(["a"], 258))
    text = TEXTS[0]
    scored, logps = scored_at_random(same.teacher, text, 1, k=40)
    found = targets.build(way, same, text, scored, text)
    letters = [i for i, written in enumerate(same.written) if written]
    for at in range(len(scored.ids) - (way != "offsets")):
        assert found.kinds[at] == "soft"
        row, known = as_dicts(found)[at], set(letters) | ({1} if way == "offsets" else set())
        likely = {int(i) for i in scored.top[at] if logps[at, i].exp() > targets.LEAST} | {int(scored.ids[at])}
        assert set(row) == likely & known and len(row) > 5
        assert row == pytest.approx({token: logps[at, token].exp().item() for token in row}, abs=1e-5)
    assert found.kinds[-1] == ("soft" if way == "offsets" else "point")


def test_digits_of_the_teacher_are_one_number_of_the_student():
    """1 then 4 is 14 with probability P(1) P(4), 15 with P(1) P(5); what else 1 might have become is the tail."""
    texts = ["sum 14", "sum 15", "sum 1", "4 5"] * 50
    both = Vocabularies(build_word_tokenizer(texts), build_sentence_tokenizer(texts, 60))
    ids = both.teacher("sum 14")["input_ids"]
    names = both.teacher.convert_ids_to_tokens(ids)
    assert names == ["sum", " 1", "4"] and both.student.tokenize("sum 14") == ["▁sum", "▁14"]
    vocab = both.teacher.get_vocab()
    end = both.teacher.eos_token_id
    likely = [{ids[0]: 1.0}, {ids[1]: 0.8, vocab["sum"]: 0.2}, {ids[2]: 0.6, vocab["5"]: 0.3, end: 0.1}, {end: 1.0}]
    top = [[*d, *[i for i in range(len(vocab)) if i not in d]][:3] for d in likely]
    logps = numpy.log([[d.get(i, 1e-9) for i in row] for d, row in zip(likely, top, strict=True)])
    scored = Scored(numpy.array([*ids, end]), logps[:, 0], numpy.array(top), logps)
    found = targets.build("offsets", both, "sum 14", scored, "sum 14")
    place = both.student.get_vocab()
    assert found.kinds == ("soft", "chunk", "soft")
    row = as_dicts(found)[1]
    assert row[place["▁14"]] == pytest.approx(0.48) and row[place["▁15"]] == pytest.approx(0.24)
    assert row[place["▁1"]] == pytest.approx(0.08) and found.tail[1] == pytest.approx(0.2)
    assert as_dicts(found)[2] == {both.student.eos_token_id: 1.0}


def test_a_solution_in_another_format_is_taught_where_it_is_the_same(both):
    problem = PROBLEMS[3]
    text = prompts.solution(problem)
    other = prompts.in_format(problem, "zero_shot_cot").completion
    scored, _ = scored_at_random(both.teacher, text, 2, k=6)
    whole, part = (targets.build("offsets", both, text, scored, each) for each in (text, other))
    steps = len(both.student(other.split("\nThe answer")[0], add_special_tokens=False)["input_ids"])
    assert set(part.kinds[:steps]) <= {"soft", "chunk"} and set(part.kinds[steps:]) == {"point"}
    for row, wanted in zip(as_dicts(part)[:steps], as_dicts(whole), strict=False):
        assert row == pytest.approx(wanted, abs=1e-6)
    answer = prompts.in_format(problem, "zero_shot_answer").completion
    assert set(targets.build("offsets", both, text, scored, answer).kinds) == {"point"}


def test_another_tokenizer_than_the_scored_one_is_refused(both):
    scored, _ = scored_at_random(both.teacher, "one 12", 0, k=3)
    with pytest.raises(InputError, match="score it again"):
        targets.build("offsets", both, "one 13 more", scored, "one 13 more")
    with pytest.raises(InputError, match="samples, dtw"):
        targets.build("myers", both, "one 12", scored, "one 12")


# ----- the teacher
def solved(problems):
    """Problems with their own solutions."""
    return [Example(p, prompts.prompt(p), prompts.solution(p), "canonical") for p in problems]


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5"])
def test_scores_are_the_models_probabilities_whatever_stands_in_the_batch(fixture, request, chains, tmp_path):
    directory = request.getfixturevalue(fixture)
    taught = solved(chains[::5])
    found = []
    for budget in (1, 4096):
        out = tmp_path / str(budget)
        out.mkdir()
        teacher.score(teacher.Config(top_k=4, batch_tokens=budget, device="cpu"), taught, directory, out)
        found.append(teacher.read(out))
    model, tokenizer = models.load_model(str(directory), device="cpu")
    for one, many, e in zip(*found, taught, strict=True):
        wanted = generation.token_probabilities(model, tokenizer, e.prompt, e.completion, top=4)
        assert len(wanted) == len(one.ids) == len(one.top)
        for at, entry in enumerate(wanted):
            assert math.exp(one.logps[at]) == pytest.approx(entry["probability"], abs=1e-5)
            assert numpy.exp(one.top_logps[at]) == pytest.approx([p for _, p in entry["top"]], abs=1e-5)
        assert numpy.allclose(one.top_logps, many.top_logps, atol=1e-4) and (one.ids == many.ids).all()
        assert one.ids[-1] == tokenizer.eos_token_id


def test_scores_come_in_files_that_are_not_made_twice(tiny_llama, chains, tmp_path, monkeypatch):
    config, taught = teacher.Config(top_k=3, device="cpu"), solved(chains[:10])
    for name, size in (("whole", 2048), ("parts", 4)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(teacher, "SHARD", size)
        teacher.score(config, taught, tiny_llama, tmp_path / name)
    whole, parts = (teacher.read(tmp_path / name) for name in ("whole", "parts"))
    assert len(list((tmp_path / "parts").iterdir())) == 3 and len(whole) == len(parts) == 10
    for one, other in zip(whole, parts, strict=True):
        assert (one.ids == other.ids).all() and numpy.allclose(one.top_logps, other.top_logps, atol=1e-4)
    (tmp_path / "parts" / "scores-00001.safetensors").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    teacher.score(config, taught, tiny_llama, tmp_path / "parts")
    assert len(teacher.read(tmp_path / "parts")) == 10 and len(list((tmp_path / "parts").iterdir())) == 3
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_texts_that_cannot_be_scored_are_refused(tiny_llama, chains, tmp_path):
    (example,) = solved(chains[:1])
    for wrong, says in (
        (replace(example, prompt=""), "without a prompt"),
        (replace(example, prompt=example.prompt * 200), "the teacher reads 256"),
    ):
        with pytest.raises(InputError, match=says):
            teacher.score(teacher.Config(device="cpu"), [wrong], tiny_llama, tmp_path)


def test_a_temperature_softens_the_distribution(tiny_llama, chains, tmp_path):
    found = []
    for temperature in (1.0, 2.0):
        out = tmp_path / str(temperature)
        out.mkdir()
        config = teacher.Config(top_k=320, temperature=temperature, device="cpu")
        teacher.score(config, solved(chains[:1]), tiny_llama, out)
        (scored,) = teacher.read(out)
        order = scored.top.argsort(1)
        found.append(torch.tensor(numpy.take_along_axis(scored.top_logps, order, 1)))
    assert torch.allclose((found[0] / 2).log_softmax(-1), found[1], atol=1e-4)


def test_only_finished_right_and_new_solutions_are_taught(chains):
    end = f"#### {chains[0].answer}"
    right = {"finished": True, "text": f"a\n{end}"}
    samples = [
        right,
        {**right, "finished": False, "text": f"b\n{end}"},
        {**right, "text": "c\n#### 77"},
        right,
        {**right, "text": f"d\n{end}"},
        {**right, "text": f"e\n{end}", "written": f"E\n{end}"},
    ]
    found, fates = teacher.solutions(chains[:1], {chains[0].id: samples}, 2)
    assert [e.completion[0] for e in found] == ["a", "d"]
    assert fates == {"taught": 2, "unfinished": 1, "wrong answer": 1, "known": 1, "enough": 1}
    assert sum(fates.values()) == len(samples)
    more, _ = teacher.solutions(chains[:1], {chains[0].id: samples}, 9, only_correct=False)
    assert [e.completion[0] for e in more] == ["a", "c", "d", "E"]
    with pytest.raises(InputError, match="no solution to teach"):
        teacher.solutions(chains[:1], {chains[0].id: samples[1:3]}, 2)


@pytest.mark.parametrize(
    "written, taught",
    [
        ("\nso\nThe answer is 3\n\nQ: more?\nThe answer is 4", "\nso\nThe answer is 3"),
        ("\nso\nThe answer is 3", "\nso\nThe answer is 3"),
        ("\nso\nThe answer is", None),
        ("\nso it goes on", None),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_follows_the_answer_is_cut_off(written, taught, finished):
    assert teacher.ended({"text": written, "finished": finished}, "in_context_cot") == taught


def test_the_end_of_a_cut_solution_is_certain(tiny_llama, chains, tmp_path):
    found = []
    for form in ("canonical", "in_context_cot"):
        (tmp_path / form).mkdir()
        taught = [replace(e, form=form) for e in solved(chains[:3])]
        teacher.score(teacher.Config(top_k=4, device="cpu"), taught, tiny_llama, tmp_path / form)
        found.append(teacher.read(tmp_path / form))
    for own, cut in zip(*found, strict=True):
        assert (own.top[:-1] == cut.top[:-1]).all() and (own.logps[:-1] == cut.logps[:-1]).all()
        assert own.logps[-1] < 0 and cut.logps[-1] == 0
        assert targets.candidates(cut, len(cut.ids) - 1) == [(1, 1.0)]


def test_formats_come_in_stated_shares_with_the_teachers_own_steps(chains):
    texts = [prompts.solution(p).replace(p.steps[0], p.steps[0] + " so") for p in chains]
    taught = [Example(p, prompts.prompt(p), text, "canonical") for p, text in zip(chains, texts, strict=True)]
    own = teacher.in_students_formats(taught, chains, [1, 1, 1, 1], 1)
    assert len(own) == len(taught)
    counts = [sum(e.form == form for e in own) for form in prompts.FORMATS]
    assert counts == [8, 8, 8, 8]
    assert teacher.in_students_formats(taught, chains, [0, 0, 0, 0], 1) == taught
    for before, after in zip(taught, own, strict=True):
        assert after.problem.question == before.problem.question
        if after.form.endswith("cot"):
            assert teacher.steps_of(before.completion) in after.completion


def test_problems_are_written_in_the_form_that_is_asked_for(chains):
    assert teacher.in_form(chains, "canonical", chains) == solved(chains)
    for form in prompts.FORMATS:
        found = teacher.in_form(chains[:4], form, chains, 1)
        assert found == [prompts.written(p, chains, form, 1) for p in chains[:4]]
    with pytest.raises(InputError, match="canonical, zero_shot_answer"):
        teacher.in_form(chains, "verse", chains)


@pytest.mark.parametrize(
    "ways, tokenizers, ratios, own, says",
    [
        (["offsets", "gold"], ["", ""], [1, 0, 0, 0], "", "ways must be among"),
        (["offsets"], ["gpt2"], [1, 0, 0, 0], "", "tokenizers wants two"),
        (["offsets"], ["", ""], [1, 1], "", "ratios wants 4"),
        (["offsets"], ["", ""], [1, 0, 0, 0], "x_cot_seed0", "03 has no model x_cot_seed0"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_at_once(ways, tokenizers, ratios, own, says):
    with pytest.raises(InputError, match=says):
        teacher.check_plan(ways, tokenizers, ratios, ["y_cot_seed0"], own)
    teacher.check_plan(["samples"], ["", ""], [0, 1, 0, 0], ["y_cot_seed0"], "y_cot_seed0")


# ----- training
@pytest.fixture(scope="module")
def lesson(tiny_llama, tmp_path_factory):
    """What `training.train` is given: a teacher that believes anything, and a causal student of its own tokenizer."""
    folder = tmp_path_factory.mktemp("lesson")
    taught = solved(PROBLEMS[:20])
    own = teacher.in_students_formats(taught, PROBLEMS, [0, 1, 0, 0], 0)
    (folder / "scores").mkdir()
    teacher.score(teacher.Config(top_k=5, device="cpu"), taught, tiny_llama, folder / "scores")
    return folder, (taught, own, own[:4], folder / "scores", tiny_llama)


def student_of(folder, model, **settings):
    """The directory of an untrained student."""
    out = folder / f"{model}-{len(list(folder.iterdir()))}"
    training.make_student(training.StudentConfig(model, vocab_size=120, **settings), solved(PROBLEMS), out)
    return out


def losses(directory):
    """The training losses that were logged."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("model", ["llama_2x128", "flan_t5_tiny"])
def test_matching_samples_is_supervised_fine_tuning(model, lesson, tmp_path):
    """The first loss is the mean negative log-likelihood of the very labels, by the model's own account."""
    folder, given = lesson
    student = student_of(folder, model)
    config = training.Config(match="samples", **{**STEPS, "batch_size": 20, "steps": 1})
    training.train(config, *given, student, tmp_path)
    language_model, tokenizer = models.load_model(str(student), device="cpu")
    rows = sft.encode_all(tokenizer, given[1], "cot", language_model.config.is_encoder_decoder)
    batch = teacher.sft_batch(rows, tokenizer.pad_token_id)
    assert losses(tmp_path)[0] == pytest.approx(language_model(**batch).loss.item(), abs=1e-4)


@pytest.mark.parametrize("model", ["llama_2x128", "flan_t5_tiny"])
@pytest.mark.parametrize("match", ["offsets", "dtw"])
def test_accumulated_batches_give_the_loss_of_the_whole_batch(model, match, lesson, tmp_path):
    folder, given = lesson
    student = student_of(folder, model)
    found = []
    for accumulation in (1, 4):
        config = training.Config(match=match, accumulation=accumulation, **{**STEPS, "steps": 2})
        training.train(config, *given, student, tmp_path / str(accumulation))
        found.append(losses(tmp_path / str(accumulation)))
    assert found[0] == pytest.approx(found[1], abs=1e-4) and found[0][0] != pytest.approx(found[0][1], abs=1e-4)


def test_targets_stand_where_their_tokens_are_predicted(lesson):
    """A student that writes what the teacher wrote, one position later, must be seen to be wrong."""
    folder, given = lesson
    student = student_of(folder, "llama_2x128")
    model, tokenizer = models.load_model(str(student), device="cpu")
    both = Vocabularies(models.load_tokenizer(str(given[4])), tokenizer)
    config = training.Config(match="samples", **STEPS)
    rows = training.encode(config, both, given[0], teacher.read(given[3]), given[1], False)
    batch = training.make_batch(rows[:3], tokenizer.pad_token_id)
    labels = batch["labels"]
    places = [(r, c) for r in range(len(labels)) for c in range(labels.shape[1]) if labels[r, c] != -100]
    assert batch["ids"][:, 0].tolist() == [labels[place].item() for place in places]
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        found = training.learned(model, batch)
    assert torch.equal(found, torch.stack([logits[r, c - 1] for r, c in places]))


def test_a_training_that_was_interrupted_ends_with_the_same_weights(lesson, tmp_path, monkeypatch):
    folder, given = lesson
    student = student_of(folder, "llama_2x128")
    config = training.Config(match="offsets", **{**STEPS, "steps": 12, "log_steps": 2})
    training.train(config, *given, student, tmp_path / "whole")
    step = training.Distiller.compute_loss

    def stumble(self, *args, **kwargs):
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Distiller, "compute_loss", stumble)
        training.train(config, *given, student, tmp_path / "cut")
    assert list((tmp_path / "cut").glob("checkpoint-*"))
    training.train(config, *given, student, tmp_path / "cut")
    for name in ("model/model.safetensors", "metrics.jsonl", "coverage.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert not list((tmp_path / "cut").glob("checkpoint-*"))


def test_a_student_learns_what_its_teacher_believes(trained_run, chains, tmp_path):
    """A teacher that knows 32 chains by heart: the student's divergence falls to next to nothing."""
    taught = solved(chains)
    (tmp_path / "scores").mkdir()
    teacher.score(teacher.Config(top_k=5, device="cpu"), taught, trained_run / "model", tmp_path / "scores")
    config = training.Config(match="offsets", steps=150, batch_size=32, learning_rate=3e-3, log_steps=15, device="cpu")
    own = teacher.in_students_formats(taught, chains, [0, 1, 0, 0], 0)
    training.make_student(training.StudentConfig("llama_2x128", vocab_size=120), own, tmp_path / "student")
    given = (taught, own, own[:4], tmp_path / "scores", trained_run / "model", tmp_path / "student")
    training.train(config, *given, tmp_path / "out")
    found = losses(tmp_path / "out")
    assert found[-1] < 0.1 * found[0]
    counted = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert counted["soft"] + counted["chunk"] + counted["point"] == pytest.approx(1)
    assert counted["chunk"] > 0.1 and counted["positions"] > 100


def test_settings_that_cannot_work_are_refused(lesson, tmp_path):
    for wrong, says in (
        ({"match": "guess"}, "Unknown way of matching 'guess'"),
        ({"accumulation": 3}, "no multiple of accumulation 3"),
        ({"steps": 0}, "steps must be at least 1"),
    ):
        with pytest.raises(InputError, match=says):
            training.Config(**{**STEPS, **wrong})
    with pytest.raises(InputError, match="top_k"):
        teacher.Config(top_k=0)
    with pytest.raises(InputError, match="above 0"):
        teacher.Config(temperature=0.0)
    folder, given = lesson
    student = student_of(folder, "llama_2x128")
    taught, own, *rest = given
    other = [replace(e, completion=" The answer is 3") for e in own]
    with pytest.raises(InputError, match="gets a distribution by offsets"):
        training.train(training.Config(**STEPS), taught, other, *rest, student, tmp_path)
    strange = [replace(e, completion="～～") for e in own]
    with pytest.raises(InputError, match="does not know"):
        training.train(training.Config(match="samples", **STEPS), taught, strange, *rest, student, tmp_path)
    with pytest.raises(InputError, match="None of 20 texts fits"):
        training.train(replace(training.Config(**STEPS), max_length=3), *given, student, tmp_path)
