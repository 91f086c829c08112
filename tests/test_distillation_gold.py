"""TRL's GOLD trainer on our pairs: which it refuses, what it is given, what its rules teach, and interrupted runs."""

import json
from dataclasses import replace

import pytest
import torch

from lib import alignment, answers, generation, models, prompts, sft
from lib.distillation import gold, teacher, training
from lib.errors import InputError
from lib.tasks import word_problems
from lib.tokenization import build_sentence_tokenizer, build_tokenizer

TEXTS = [prompts.prompt(p) + prompts.solution(p) for p in word_problems.generate(80)]
SHORT = training.Config(steps=7, batch_size=8, log_steps=1, valid_problems=4, device="cpu", warmup_steps=1)


@pytest.fixture(scope="module")
def tokenizers():
    """Two that write bytes, of 300 and of 420 tokens."""
    return build_tokenizer(TEXTS, 300), build_tokenizer(TEXTS, 420)


@pytest.fixture(scope="module")
def pair(chains, chain_texts, trained_run, tmp_path_factory):
    """(examples, the directory of a teacher that knows them by heart, that of a student of more tokens, most alike)."""
    own = prompts.examples(chains, "cot")
    return own, trained_run / "model", made(tmp_path_factory.mktemp("gold"), own, [*3 * chain_texts, *TEXTS])


def made(folder, own, texts):
    """The directory of an untrained student whose 420 tokens come from `texts`."""
    build_tokenizer(texts, 420).save_pretrained(folder / "tokenizer")
    training.make_student(training.StudentConfig("llama_2x128", str(folder / "tokenizer")), own, folder / "student")
    return folder / "student"


def losses(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def load(directory):
    return models.load_model(str(directory), device="cpu")


def surprise(directory, known, examples):
    """Mean negative log-likelihoods of a model: (of tokens that stand opposite one of the teacher's, of the others)."""
    model, tokenizer = load(directory)
    rows = sft.encode_all(tokenizer, examples, "cot")
    batch = teacher.sft_batch(rows, tokenizer.pad_token_id)
    with torch.no_grad():
        logps = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(
            -1
        )
    single, others = [], []
    for e, row, table in zip(examples, rows, logps, strict=True):
        sides = [alignment.tokens(side, e.completion) for side in (models.load_tokenizer(str(known)), tokenizer)]
        start = row["labels"].count(-100)
        for group in alignment.align(*sides, "offsets_strict").groups:
            places = range(start + group.student[0], start + group.student[1])
            (single if group.kind == "1:1" else others).extend(-table[p - 1, row["input_ids"][p]] for p in places)
    return tuple(float(sum(some) / len(some)) if some else 0.0 for some in (single, others))


# ----- which pairs
def test_pairs_without_an_exact_route_are_refused(tokenizers, tiny_t5, pair, tmp_path):
    small, large = tokenizers
    sentence = build_sentence_tokenizer(TEXTS, 200)
    gold.check(small, large, False)
    with pytest.raises(InputError, match="the student's tokenizer does not write bytes"):
        gold.check(small, sentence, False)
    with pytest.raises(InputError, match="the teacher's tokenizer does not write bytes"):
        gold.check(sentence, large, False)
    with pytest.raises(InputError, match="causal students only"):
        gold.check(small, large, True)
    own, known, student = pair
    with pytest.raises(InputError, match="causal students only"):
        gold.train(SHORT, own, own[:4], known, tiny_t5, tmp_path)
    with pytest.raises(InputError, match="a whole batch of 64 texts, not 32"):
        gold.train(replace(SHORT, batch_size=64), own, own[:4], known, student, tmp_path)
    with pytest.raises(InputError, match="None of 32 texts fits"):
        gold.train(replace(SHORT, max_length=3), own, own[:4], known, student, tmp_path)


# ----- what it is given
def test_tokens_are_those_of_generation_and_their_bytes_are_the_completions(tokenizers):
    examples = [
        replace(e, completion=e.completion + " é½🎉") for e in prompts.examples(word_problems.generate(20), "cot")
    ]
    for tokenizer in tokenizers:
        rows = gold.encode(SHORT, tokenizer, examples)
        for row, plain, e in zip(rows, sft.encode_all(tokenizer, examples, "cot"), examples, strict=True):
            assert row["input_ids"] == plain["input_ids"] and row["labels"] == plain["labels"]
            text, end = e.completion.encode(), len(e.completion.encode())
            spans = [span for span, label in zip(row["byte_offsets"], row["labels"], strict=True) if label != -100]
            assert spans[-1] == (end, end) and [a for a, _ in spans[1:]] == [b for _, b in spans[:-1]]
            ids = [label for label in row["labels"] if label != -100]
            for token, (start, stop) in zip(ids[:-1], spans[:-1], strict=True):
                assert tokenizer.decode([token]) == text[start:stop].decode(errors="replace")


def test_the_teacher_reads_the_same_text_in_its_own_tokens(pair):
    from trl.experimental.gold.gold_trainer import build_teacher_inputs_from_texts

    own, known, _ = pair
    tokenizer = models.load_tokenizer(str(known))
    ids, labels, mask, _ = build_teacher_inputs_from_texts(
        tokenizer, [e.prompt for e in own], [e.completion for e in own]
    )
    wanted = teacher.sft_batch(sft.encode_all(tokenizer, own, "cot"), tokenizer.pad_token_id)
    assert torch.equal(ids, wanted["input_ids"]) and torch.equal(labels, wanted["labels"])
    assert torch.equal(mask.long(), wanted["attention_mask"])


def test_our_batch_has_the_loss_of_the_librarys_own(pair, tmp_path):
    """Of its own preparation from text, too: here no token of a whole text straddles prompt and completion."""
    from trl.experimental.utils import DataCollatorForChatML

    own, known, student = pair
    trainer = gold.make_trainer(SHORT, own, own[:4], known, student, tmp_path)
    tokenizer = trainer.processing_class
    ours = gold.encode(SHORT, tokenizer, own[:6])
    texts = trainer.train_dataset.from_list([{"prompt": e.prompt, "completion": e.completion} for e in own[:6]])
    theirs = list(trainer._prepare_dataset(texts, tokenizer, trainer.args, False, None, "train"))
    assert [row["input_ids"] for row in ours] == [row["input_ids"] for row in theirs]
    assert [[list(span) for span in row["byte_offsets"]] for row in ours] == [row["byte_offsets"] for row in theirs]
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, gold.make_batch(ours, tokenizer.pad_token_id))
        wanted = trainer.compute_loss(trainer.model, DataCollatorForChatML(tokenizer, max_length=512)(theirs))
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5) and found > 0.1


# ----- what it teaches
LESSON = replace(SHORT, steps=40, batch_size=32, learning_rate=3e-3, warmup_steps=10, log_steps=6)


def test_a_student_of_like_tokens_learns_what_its_teacher_knows(pair, tmp_path):
    own, known, student = pair
    gold.train(LESSON, own, own[:4], known, student, tmp_path)
    found, before, after = losses(tmp_path), surprise(student, known, own), surprise(tmp_path / "model", known, own)
    assert found[-1] < 0.1 * found[0] and after[0] < 0.1 * before[0] and after[1] == 0, "all are opposite one"
    model, tokenizer = load(tmp_path / "model")
    written = generation.generate(model, tokenizer, [e.prompt for e in own], max_new_tokens=40)
    assert sum(answers.is_correct(e.problem, w.text) for e, w in zip(own, written, strict=True)) > 24
    assert sum(w.finished for w in written) > 24, "the end of the sequence is learned, too"
    assert json.loads((tmp_path / "config.json").read_text())["gold"] == gold.SETTINGS
    assert not list(tmp_path.glob("checkpoint-*"))


def test_groups_of_several_tokens_are_taught_away_unless_samples_are_taught_too(pair, tmp_path):
    """A student whose tokens cut chains otherwise: what stands opposite one token is learned, the rest unlearned."""
    own, known, _ = pair
    student = made(tmp_path, own, TEXTS)
    before = surprise(student, known, own)
    gold.train(LESSON, own, own[:4], known, student, tmp_path / "plain")
    single, others = surprise(tmp_path / "plain" / "model", known, own)
    assert losses(tmp_path / "plain")[-1] < 0.5 * losses(tmp_path / "plain")[0]
    assert single < 0.1 * before[0] and others > before[1]
    gold.train(LESSON, own, own[:4], known, student, tmp_path / "samples", uld_crossentropy_weight=1.0)
    assert max(surprise(tmp_path / "samples" / "model", known, own)) < 0.2 * before[1]


def test_golds_defaults_teach_the_shape_of_a_distribution_and_not_its_tokens(pair, tmp_path):
    own, known, student = pair
    config = replace(LESSON, steps=20, log_steps=2)
    plain = dict(beta=0.5, uld_use_hybrid_loss=False, uld_skip_student_eos=True, uld_skip_teacher_eos=True)
    gold.train(config, own, own[:4], known, student, tmp_path, uld_token_merge_strategy="observed", **plain)
    found = losses(tmp_path)
    assert found[-1] < 0.5 * found[0]
    assert surprise(tmp_path / "model", known, own)[0] > surprise(student, known, own)[0]


def test_accumulated_batches_give_the_loss_and_gradient_of_the_whole_batch(pair, tmp_path):
    own, known, student = pair
    curves = []
    for accumulation in (1, 4):
        config = replace(SHORT, steps=2, accumulation=accumulation)
        gold.train(config, own, own[:4], known, student, tmp_path / str(accumulation))
        rows = (tmp_path / str(accumulation) / "metrics.jsonl").read_text().splitlines()
        curves.append([(row["loss"], row["grad_norm"]) for row in map(json.loads, rows) if "loss" in row])
    assert curves[1] == [pytest.approx(point, rel=1e-3) for point in curves[0]]


# ----- interrupted runs
def test_a_training_that_was_interrupted_ends_with_the_same_weights(pair, tmp_path, monkeypatch):
    """20 texts in batches of 8: an epoch is two steps, and it stops in the third."""
    from trl.experimental.gold import GOLDTrainer

    own, known, student = pair
    given = (own[:20], own[:4], known, student)
    gold.train(SHORT, *given, tmp_path / "whole")
    step = GOLDTrainer.compute_loss

    def stumble(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GOLDTrainer, "compute_loss", stumble)
        gold.train(SHORT, *given, tmp_path / "cut")
    assert list((tmp_path / "cut").glob("checkpoint-*"))
    gold.train(SHORT, *given, tmp_path / "cut")
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
