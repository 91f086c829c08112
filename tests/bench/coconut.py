"""Speeds of continuous thoughts, on GPT-2 with 4 layers of width 256 and ProsQA questions of the published length."""

from pathlib import Path

from tests.bench.timing import entry, ratio


def prepared(n: int):
    """(Coconut, tokenizer, encoded problems): untrained, six thoughts a problem as in the published last stage."""
    from lib import models, prompts
    from lib.coconut import engine, sequences
    from lib.coconut.config import Config
    from lib.tasks import prosqa
    from lib.tokenization import build_tokenizer

    problems = prosqa.generate(n, "faithful", "text")
    tokenizer = build_tokenizer([prompts.prompt(p) + prompts.solution(p) for p in problems])
    config = Config(markers=True, source="last_hidden", max_latent_stage=6, max_length=1024)
    models.seed_everything(0)
    model, _ = models.load_model("gpt2_4x256", tokenizer, device="cpu")
    return engine.wrap(config, model, tokenizer), tokenizer, sequences.encode(config, tokenizer, problems)


def batch_of(thinker, tokenizer, encoded: list[dict], thoughts: int) -> dict:
    """Stage 6 or stage 0 of these problems."""
    from lib.coconut import sequences

    rows = [sequences.row(e, thoughts, thoughts, thinker.markers) for e in encoded]
    return sequences.make_batch(rows, tokenizer.pad_token_id)


def step_vs_lm_step(folder: Path) -> dict:
    """A training step with six thoughts against transformers' own loss and its gradient on the same columns."""
    thinker, tokenizer, encoded = prepared(32)
    batch = batch_of(thinker, tokenizer, encoded, 6)
    plain = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids", "labels")}

    def coconut():
        thinker.zero_grad()
        thinker(**batch)["loss"].backward()

    def ordinary():
        thinker.zero_grad()
        thinker.model(**plain).loss.backward()

    what = f"forward and backward, batch 32, {batch['input_ids'].shape[1]} columns, 6 thoughts, on the CPU"
    value = ratio(ordinary, coconut)
    return entry("coconut_step_vs_lm_step", value, 1.3, "a language model's step of that length", what, better="lower")


def step_vs_list_of_lists(folder: Path) -> dict:
    """The same step against one that takes the embeddings apart and stacks them anew after each thought."""
    from tests.oracles.coconut import list_of_lists_forward

    thinker, tokenizer, encoded = prepared(32)
    batch = batch_of(thinker, tokenizer, encoded, 6)
    plain = [batch[name] for name in ("input_ids", "attention_mask", "position_ids", "labels")]

    def coconut():
        thinker.zero_grad()
        thinker(**batch)["loss"].backward()

    def published():
        thinker.zero_grad()
        list_of_lists_forward(thinker.model, thinker.markers[2], *plain)[2].backward()

    what = f"forward and backward, batch 32, {batch['input_ids'].shape[1]} columns, 6 thoughts, on the CPU"
    value = ratio(coconut, published, pairs=3)
    return entry("coconut_step_vs_list_of_lists", value, 10, "embeddings split and restacked", what, pairs=3)


def generate_vs_uncached(folder: Path) -> dict:
    """48 new tokens after six thoughts for 32 questions: in one cached batch, against one by one without a cache."""
    from lib.coconut import generation
    from lib.tasks import prosqa
    from tests.oracles.coconut import uncached_generate

    thinker, tokenizer, encoded = prepared(32)
    thinker.eval()
    tokenizer.eos_token = None  # every row goes on to the last token
    thinker.model.generation_config.eos_token_id = None
    asked = [p.question + "\n" for p in prosqa.generate(32, "faithful", "text")]

    def batched():
        found = generation.generate(thinker, tokenizer, asked, 6, max_new_tokens=48)
        assert all(g.tokens == 6 + 48 for g in found)

    def alone():
        for e in encoded:
            uncached_generate(thinker.model, e["question"], thinker.markers, 6, 48, None)

    what = "48 tokens after 6 thoughts, 32 questions, on the CPU"
    value = ratio(batched, alone, pairs=3)
    return entry("coconut_generate_vs_uncached", value, 12, "one by one, all read anew for each token", what, pairs=3)


ALL = (step_vs_lm_step, step_vs_list_of_lists, generate_vs_uncached)
