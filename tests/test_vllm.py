"""vLLM itself, on a small model trained here: the completions of `lib.generation`, its ends, seeds and refusals."""

import importlib.util
import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from lib import generation_vllm, models, prompts
from lib.errors import InputError
from lib.generation import generate
from lib.tasks import word_problems

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op:FutureWarning")  # vLLM's own
with_engine = pytest.mark.vllm
NEW = 48  # the longest of the completions has about half of it


@pytest.fixture(scope="session")
def vllm():
    return pytest.importorskip(
        "vllm", reason="vLLM is not installed; `make test-vllm` installs it", exc_type=ImportError
    )


@pytest.fixture(scope="module")
def problems():
    return word_problems.generate(1400, max_steps=2, max_number=10, seed=0)


@pytest.fixture(scope="module")
def asked(problems):
    """200 prompts that the model was not trained on."""
    return [prompts.prompt(p) for p in problems[1000:1200]]


@pytest.fixture(scope="module")
def trained(vllm, problems, tmp_path_factory):
    """A two-layer Llama of width 128 that writes the form of the solutions, and some right ones."""
    from lib import sft

    directory = tmp_path_factory.mktemp("trained")
    config = sft.Config(
        "llama_2x128", steps=150, batch_size=16, learning_rate=4e-3, warmup_steps=20, vocab_size=512, device="cpu"
    )
    sft.train(config, problems[:1000], problems[1200:1220], directory)
    return directory / "model"


@pytest.fixture(autouse=True)
def one_engine_a_test():
    yield
    generation_vllm.close()


def complete(engine, asked, **how):
    """The completions of every block, in the order of the prompts."""
    pieces = list(generation_vllm.stream(engine, asked, **{"max_new_tokens": NEW, **how}))
    assert [row for rows, _ in pieces for row in rows] == list(range(len(asked)))
    return [g for _, generations in pieces for g in generations]


def texts(engine, asked, **how):
    return [g.text for g in complete(engine, asked, **how)]


@pytest.fixture
def share_of_equals(capsys):
    """share_of_equals(directory, prompts, name): (share of completions that both backends agree on, vLLM's)."""
    return lambda *arguments: compare(*arguments, capsys)


def compare(directory, asked, name, capsys):
    wanted = generate(*models.load_model(str(directory), device="cpu"), asked, max_new_tokens=NEW)
    found = complete(generation_vllm.load(str(directory)), asked)
    same = [
        (f.text, f.tokens, f.finished) == (w.text, w.tokens, w.finished) for f, w in zip(found, wanted, strict=True)
    ]
    with capsys.disabled():
        print(f"\n{name}: {sum(same)} of {len(same)} completions are equal, {sum(f.finished for f in found)} ended")
    return sum(same) / len(same), found


# --- greedy ---


@with_engine
def test_greedy_completions_are_those_of_the_other_backend(share_of_equals, trained, asked):
    share, found = share_of_equals(trained, asked, "greedy")
    assert share >= 0.99
    assert sum(g.finished for g in found) >= 190 and len({g.text for g in found}) > 100
    assert all(g.seconds > 0 for g in found)


@with_engine
def test_padding_with_the_end_changes_nothing(share_of_equals, trained, asked, tmp_path):
    model, tokenizer = models.load_model(str(trained), device="cpu")
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    directory = models.save_model(model, tokenizer, tmp_path / "same")
    share, found = share_of_equals(directory, asked, "pad is end")
    assert share >= 0.99 and sum(g.finished for g in found) >= 190


@with_engine
def test_every_end_that_the_model_names_ends(share_of_equals, trained, asked, tmp_path):
    model, tokenizer = models.load_model(str(trained), device="cpu")
    (mark,) = tokenizer("#### ")["input_ids"]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, mark]
    directory = models.save_model(model, tokenizer, tmp_path / "two_ends")
    share, found = share_of_equals(directory, asked, "two ends")
    assert share >= 0.99
    assert sum(g.text.endswith("#### ") for g in found) > 150, "it is not a special token, so it shows"


@with_engine
def test_the_end_is_counted_but_not_shown_and_running_out_is_no_end(trained, asked):
    engine = generation_vllm.load(str(trained))
    whole = next(g for g in complete(engine, asked[:20]) if g.finished)
    prompt = asked[[g.text for g in complete(engine, asked[:20])].index(whole.text)]
    assert whole.tokens == len(engine.tokenizer(whole.text)["input_ids"]) + 1
    (just,) = complete(engine, [prompt], max_new_tokens=whole.tokens)
    (short,) = complete(engine, [prompt], max_new_tokens=whole.tokens - 1)
    assert (just.text, just.tokens, just.finished) == (whole.text, whole.tokens, True)
    assert (short.text, short.tokens, short.finished) == (whole.text, whole.tokens - 1, False)


# --- sampling ---


@with_engine
def test_a_sample_depends_on_its_prompt_seed_and_index_alone(trained, asked):
    engine = generation_vllm.load(str(trained))
    requests = [(prompt, index) for prompt in asked[:40] for index in range(4)]
    how = dict(temperature=1.0, seed=3)

    def sample(requests, **other):
        rows = texts(engine, [p for p, _ in requests], indices=[i for _, i in requests], **{**how, **other})
        return dict(zip(requests, rows, strict=True))

    first = sample(requests)
    assert sample(requests[::-1]) == first, "in another order"
    assert sample(requests, block=7) == first, "in other batches"
    for request in requests[:10]:
        assert sample([request]) == {request: first[request]}, "alone"
    assert sum(len({first[p, i] for i in range(4)}) > 1 for p in asked[:40]) > 35, "indices differ"
    assert sum(a != b for a, b in zip(first.values(), sample(requests, seed=4).values(), strict=True)) > 80


@with_engine
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_softmax_of_logits_over_temperature(temperature, trained, asked):
    import torch

    model, tokenizer = models.load_model(str(trained), device="cpu")
    prompt, n = asked[0] + "<<8+5=", 2000
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
    chances = Counter()
    for i, p in enumerate((logits / temperature).softmax(-1).tolist()):
        chances[tokenizer.decode([i], skip_special_tokens=True)] += p  # lone bytes look alike
    how = dict(max_new_tokens=1, temperature=temperature, indices=list(range(n)))
    counts = Counter(texts(generation_vllm.load(str(trained)), [prompt] * n, **how))
    frequent = {text: p for text, p in chances.items() if n * p > 10}
    assert len(frequent) > 3
    for text, p in frequent.items():
        assert abs(counts[text] - n * p) < 5 * (n * p * (1 - p)) ** 0.5


@with_engine
def test_top_k_and_top_p_narrow_the_choice(trained, asked):
    engine = generation_vllm.load(str(trained))
    greedy = texts(engine, asked[:50])
    assert texts(engine, asked[:50], temperature=2.0) != greedy
    assert texts(engine, asked[:50], temperature=2.0, top_k=1) == greedy
    assert texts(engine, asked[:50], temperature=2.0, top_p=1e-6) == greedy


# --- adapters ---


def adapter(trained, directory, rank):
    """A LoRA adapter with a B that changes what the model says."""
    import torch
    from peft import get_peft_model

    model, tokenizer = models.load_model(str(trained), device="cpu")
    torch.manual_seed(0)
    model = get_peft_model(model, models.lora_config(model, rank))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return models.save_model(model, tokenizer, directory)


@with_engine
@pytest.mark.parametrize("rank", [4, 16])
def test_an_adapter_works_as_in_the_other_backend(rank, share_of_equals, trained, asked, tmp_path):
    share, found = share_of_equals(adapter(trained, tmp_path / "adapter", rank), asked, f"adapter of rank {rank}")
    assert share >= 0.99
    plain = texts(generation_vllm.load(str(trained)), asked)
    assert sum(a != b.text for a, b in zip(plain, found, strict=True)) > 20, "the adapter does something"


@with_engine
def test_what_vllm_cannot_adapt_is_refused(trained, tmp_path):
    directory = adapter(trained, tmp_path / "adapter", 4)
    settings = json.loads((directory / "adapter_config.json").read_text())

    def refused(match, **changes):
        (directory / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
        with pytest.raises(InputError, match=match):
            generation_vllm.load(str(directory))

    refused("vLLM cannot run .* max_lora_rank", r=1024)
    refused("DoRA", use_dora=True)
    refused("needs its base model", base_model_name_or_path=str(tmp_path / "nowhere"))
    more = shutil.copytree(trained, tmp_path / "more")
    tokenizer = models.load_tokenizer(str(more))
    tokenizer.add_tokens([f"<t{i}>" for i in range(600)])
    tokenizer.save_pretrained(directory)
    refused("vLLM adds none")


# --- the engine ---


@with_engine
def test_blocks_that_were_done_are_skipped(trained, asked):
    engine = generation_vllm.load(str(trained))

    def pieces(done):
        found = generation_vllm.stream(
            engine, asked[:50], NEW, temperature=1.0, indices=list(range(50)), block=16, done=done
        )
        return [(rows, [replace(g, seconds=0) for g in generations]) for rows, generations in found]

    whole = pieces(0)
    assert [len(rows) for rows, _ in whole] == [16, 16, 16, 2]
    for done in (1, 3, 4):
        assert pieces(done) == whole[done:]


@with_engine
def test_no_prompts_give_no_completions(trained):
    assert complete(generation_vllm.load(str(trained)), []) == []


@with_engine
def test_it_starts_no_process(trained, asked):
    import psutil

    engine = generation_vllm.load(str(trained))
    complete(engine, asked[:3])
    assert psutil.Process().children(recursive=True) == []


@with_engine
def test_another_engine_takes_the_place_of_the_first_also_after_a_failure(trained, asked):
    wanted = texts(generation_vllm.load(str(trained)), asked[:20])
    with pytest.raises(InputError, match="max_model_len"):
        generation_vllm.load(str(trained), max_model_len=10**6)
    assert texts(generation_vllm.load(str(trained)), asked[:20]) == wanted
    assert texts(generation_vllm.load(str(trained)), asked[:20]) == wanted


@with_engine
def test_drawing_samples_with_it(trained, problems, tmp_path):
    from lib import sampling

    config = sampling.Config(n_samples=2, temperature=1.0, max_new_tokens=NEW, backend="vllm", device="cpu")
    sampling.draw(config, problems[1000:1010], str(trained), tmp_path)
    drawn = sampling.read_samples(tmp_path)
    assert [len(samples) for samples in drawn.values()] == [2] * 10


@with_engine
def test_what_the_engine_cannot_sample_is_refused(trained):
    engine = generation_vllm.load(str(trained), max_model_len=64)
    for match, given, how in [
        ("no tokens", ["a", ""], {}),
        ("exceed the 64 tokens", ["a", "b " * 60], {}),
        ("exceed the 64 tokens", ["a"], dict(max_new_tokens=64)),
        ("temperature", ["a"], dict(temperature=2.5)),
        ("below 0.01", ["a"], dict(temperature=1e-3)),
        ("top_p", ["a"], dict(temperature=1.0, top_p=1.5)),
    ]:
        with pytest.raises(InputError, match=match):
            complete(engine, given, **{"max_new_tokens": 10, **how})
    assert complete(engine, ["a"], max_new_tokens=4), "the engine still works"


@with_engine
def test_a_device_that_this_vllm_does_not_use_is_refused(trained, vllm, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="runs on the CPU"):
        generation_vllm.load(str(trained), device="cuda")


# --- refused before vLLM is asked, so tested without it ---


@pytest.mark.parametrize(
    "name, match",
    [("llama_tiny", "untrained preset"), ("tiny_t5", "encoder-decoder"), ("/nowhere", "Cannot load the model")],
)
def test_models_that_vllm_does_not_run_are_refused(name, match, request):
    with pytest.raises(InputError, match=match):
        generation_vllm.load(str(request.getfixturevalue(name)) if name == "tiny_t5" else name)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_sentence_says_what_to_install(tiny_llama):
    with pytest.raises(InputError, match="install this project's extra vllm"):
        generation_vllm.load(str(tiny_llama))
