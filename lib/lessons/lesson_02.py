"""Exercises of 02_prompting: generation one by one, in a batch and of many samples; reading a stated answer."""

from lib.lessons.check import Exercise

EOS, PAD = 9, 0


def _model(next_token):
    """next_logits of a toy model; it refuses to be asked for ever."""
    calls = []

    def next_logits(ids):
        calls.append(1)
        assert len(calls) <= 50, "more than 50 tokens were asked for: is the limit kept?"
        return [1.0 if token == next_token(ids) else 0.0 for token in range(10)]

    return next_logits


def _counting():
    """After token t comes t + 1, and 9 is the end."""
    return _model(lambda ids: ids[-1] + 1)


def _remembering():
    """A model that looks at the whole text: it writes the sum of all tokens, modulo 7, plus 1."""
    return _model(lambda ids: sum(ids) % 7 + 1)


def greedy_takes_the_likeliest(greedy):
    """Each new token is the one with the highest logit."""
    found = list(greedy(_counting(), [3, 4], EOS, 3))
    assert found == [5, 6, 7], f"a model that counts, given 3 4, wrote {found} in 3 tokens, not [5, 6, 7]"


def greedy_reads_everything(greedy):
    """The model is given the prompt and all that was written since."""
    expected, ids = [], [2, 3]
    for _ in range(4):
        expected.append(sum(ids) % 7 + 1)
        ids.append(expected[-1])
    found = list(greedy(_remembering(), [2, 3], EOS, 4))
    assert found == expected, f"expected {expected}, found {found}: is each new token appended to the prompt?"


def greedy_stops_at_the_end(greedy):
    """It stops at eos, which is returned too, or at the limit."""
    found = list(greedy(_counting(), [EOS, 6], EOS, 20))
    assert found, "nothing was written: an eos in the prompt, as in every chat, is not the end"
    assert found == [7, 8, 9], f"given 9 6, a model that counts to its end at 9 should give [7, 8, 9], found {found}"
    assert list(greedy(_counting(), [1], EOS, 0)) == [], "a limit of 0 leaves nothing to write"


def greedy_leaves_the_prompt_alone(greedy):
    """The prompt is neither changed nor returned."""
    prompt = [3, 4]
    found = list(greedy(_counting(), prompt, EOS, 2))
    assert prompt == [3, 4], "the prompt was changed in place: the next sample of it would go on from here"
    assert found[:2] != [3, 4], "the prompt is part of what came back; only new tokens should be"


BATCH = [[5], [6, 0, 7], [8, 9]]  # the pad id 0 also occurs inside a prompt


def batch_is_a_rectangle(make_batch):
    """ids, mask and positions have one row a prompt, all of the longest prompt's length."""
    parts = [list(map(list, part)) for part in make_batch([list(p) for p in BATCH], PAD)]
    assert len(parts) == 3, f"return three lists of rows, ids, mask and positions; found {len(parts)}"
    for name, rows in zip(("ids", "mask", "positions"), parts, strict=True):
        assert [len(row) for row in rows] == [3, 3, 3], f"{name} has rows of lengths {[len(row) for row in rows]}"


def batch_pads_on_the_left(make_batch):
    """Every prompt stands at the right end of its row, in the order of the prompts."""
    ids, _, _ = make_batch([list(p) for p in BATCH], PAD)
    rows = [list(row) for row in ids]
    wrong = "the padding stands on the right: generation would go on from padding" if rows[0][0] == 5 else rows
    assert rows == [[0, 0, 5], [6, 0, 7], [0, 8, 9]], f"found {wrong}"


def batch_masks_padding_alone(make_batch):
    """The mask is 0 on padding and 1 on every token of a prompt, also where a prompt holds the pad id."""
    _, mask, _ = make_batch([list(p) for p in BATCH], PAD)
    rows = [list(map(int, row)) for row in mask]
    assert rows[1] == [1, 1, 1], f"the second prompt has no padding but its mask is {rows[1]}: was it made from ids?"
    assert rows == [[0, 0, 1], [1, 1, 1], [0, 1, 1]], f"found {rows}"


def batch_counts_from_the_first_token(make_batch):
    """Positions count 0, 1, 2 ... from the first real token."""
    _, mask, positions = make_batch([list(p) for p in BATCH], PAD)
    for row, on, prompt in zip(positions, mask, BATCH, strict=True):
        real = [place for place, bit in zip(row, on, strict=True) if bit]
        assert real == list(range(len(prompt))), f"the tokens of {prompt} got the positions {real}"


def batch_uses_the_pad_that_it_is_given(make_batch):
    """Padding is the id `pad`, rows are as long as the longest prompt, and positions under padding are 0."""
    parts = list(make_batch([[3, 4, 5, 6], [7]], 9))
    assert len(parts) == 3, f"return three lists of rows, ids, mask and positions; found {len(parts)}"
    ids, mask, positions = ([list(map(int, row)) for row in part] for part in parts)
    assert ids == [[3, 4, 5, 6], [9, 9, 9, 7]], f"with pad 9, [7] beside a prompt of four tokens became {ids[-1]}"
    assert (mask, positions) == ([[1] * 4, [0, 0, 0, 1]], [[0, 1, 2, 3], [0] * 4]), f"found {mask} and {positions}"


def batch_gives_the_logits_of_each_alone(make_batch):
    """A real model gives each padded prompt the logits that it gives it alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
        )
    ).eval()
    ids, mask, positions = (
        torch.tensor([list(row) for row in part]) for part in make_batch(list(map(list, BATCH)), PAD)
    )
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        for prompt, logits in zip(BATCH, together, strict=True):
            alone = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            gap = (logits - alone).abs().max().item()
            assert gap < 1e-4, f"the logits of {prompt} differ by {gap:.3f} from those it gets alone"


def stated_reads_the_number(stated):
    """A plain answer is read."""
    for text, answer in {"The answer is 18": "18", "3 + 4 = 7\nThe answer is 7": "7", "The answer is -2": "-2"}.items():
        assert stated(text) == answer, f"{text!r} gave {stated(text)!r}, not {answer!r}"


def stated_drops_decoration(stated):
    """Dollar signs, thousands commas and a full stop are no part of the number."""
    for text, answer in {
        "The answer is $1,080.": "1080",
        "The answer is 3.50": "3.50",
        "The answer is 7.": "7",
    }.items():
        assert stated(text) == answer, f"{text!r} gave {stated(text)!r}, not {answer!r}"


def stated_takes_the_last(stated):
    """Of several, the last counts, and only its own line."""
    text = "The answer is 3\nNo. The answer is 4\nthanks"
    assert stated(text) == "4", f"{text!r} gave {stated(text)!r}, not '4'"


def stated_admits_there_is_none(stated):
    """Without a stated answer there is none, whatever numbers the text holds."""
    for text in ("", "3 + 4 = 7", "The answer is "):
        assert stated(text) is None, f"{text!r} gave {stated(text)!r}, not None: a guess would count as an answer"


PROMPTS = ["A cat has 4 legs. Two cats?", "2 + 3 =", "How many days are in 3 weeks?", "2 + 3 = 5, so 2 + 4 =", "7?"]


def _written(prompt: str, sample: int, limit: int) -> str:
    """What the scripted model writes: its first `limit` words, the prompt repeated among them."""
    return "".join(f" {word}" for word in [f"[{sample}]", "again:", prompt, "and", *map(str, range(100))][:limit])


def _completed(complete, prompts, limit, **asked):
    """(what `complete` returns, the calls that it made) with a scripted generate; tuples become lists."""
    calls = []

    def generate(prompts, max_new_tokens=20, do_sample=None, temperature=None, num_return_sequences=1):
        assert not isinstance(prompts, str), "generate was given one text; it takes a list of prompts"
        assert len(calls) < 50, "generate was called more than 50 times: do the batches move on?"
        k = num_return_sequences or 1
        calls.append((len(prompts), k, max_new_tokens, do_sample, temperature))
        return [prompt + _written(prompt, sample, max_new_tokens) for prompt in prompts for sample in range(k)]

    found = complete(generate, list(prompts), limit, **asked)
    assert isinstance(found, (list, tuple)), f"a list with an entry for each prompt was expected, found {found!r}"
    assert len(found) == len(prompts), f"{len(prompts)} prompts came in, {len(found)} entries came out"
    return [list(entry) if isinstance(entry, tuple) else entry for entry in found], calls


def complete_gives_a_text_without_k(complete):
    """With k=None there is one text for each prompt, not a list."""
    for entry in _completed(complete, PROMPTS, 5)[0]:
        assert isinstance(entry, str), f"without k each prompt gets a text, found {entry!r}"


def complete_gives_a_list_for_any_k(complete):
    """With a k there is a list of k texts for each prompt, also with k=1."""
    for k in (1, 3):
        for entry in _completed(complete, PROMPTS, 5, k=k, temperature=0.7)[0]:
            reason = ": entry[0], meant to be the first sample, is then one letter" if isinstance(entry, str) else ""
            assert isinstance(entry, list) and len(entry) == k, (
                f"k={k} should give lists of {k}, found {entry!r}{reason}"
            )


def complete_drops_the_prompt(complete):
    """A text begins where its prompt ends, and is whole from there on."""
    for prompt, entry in zip(PROMPTS, _completed(complete, PROMPTS, 5)[0], strict=True):
        text, wanted = entry if isinstance(entry, str) else entry[0], _written(prompt, 0, 5)
        reason = "cut it off by the length of its own prompt, and keep the order of the prompts"
        if text.startswith(prompt):
            reason = "the prompt still stands in front, and an answer in it, such as an exemplar's, would be read"
        elif text in (wanted.replace(prompt, ""), wanted.rpartition(prompt)[2]):
            reason = "the model repeated the prompt, and that was removed, too: cut by length, do not search"
        assert text.startswith(wanted), f"after {prompt!r} was written {wanted!r}, found {text!r}; {reason}"


def complete_keeps_what_belongs_together(complete):
    """Entries stand in the order of the prompts, each with its own samples in their order, whatever the batches."""
    for k, budget in ((2, 4), (3, 10), (3, 32)):
        found, _ = _completed(complete, PROMPTS, 2, k=k, temperature=0.7, budget=budget)
        for prompt, entry in zip(PROMPTS, found, strict=True):
            ends = [text.rpartition(" again:")[0][-3:] for text in entry if isinstance(text, str)]
            assert ends == [f"[{i}]" for i in range(k)], (
                f"k={k}, budget={budget}: the {k} samples of {prompt!r} are numbers 0 to {k - 1}, found {ends}; "
                "one prompt's samples come next to one another"
            )
    for budget in (2, 32):
        found, _ = _completed(complete, PROMPTS, 3, budget=budget)
        for prompt, text in zip(PROMPTS, found, strict=True):
            text = text if isinstance(text, str) else text[0]
            assert text.startswith(_written(prompt, 0, 3)), (
                f"budget={budget}: {prompt!r} got another prompt's text, {text!r}"
            )


def complete_stays_within_the_budget(complete):
    """No call asks for more than `budget` sequences, prompts times samples."""
    for k, budget in ((None, 2), (1, 2), (3, 7), (4, 8)):
        most = max(n * each for n, each, *_ in _completed(complete, PROMPTS, 5, k=k, temperature=0.7, budget=budget)[1])
        assert most <= budget, (
            f"k={k}, budget={budget}: one call asked for {most} sequences, which may not fit into memory; "
            "the budget counts samples, not prompts"
        )


def complete_fills_the_budget(complete):
    """There are no more calls than the budget needs."""
    for k, budget, wanted in ((None, 4, 2), (2, 4, 3), (3, 32, 1)):
        calls = len(_completed(complete, PROMPTS, 5, k=k, temperature=0.7, budget=budget)[1])
        assert calls <= wanted, f"5 prompts, k={k}, budget={budget}: {wanted} calls are enough, found {calls}"


def complete_asks_for_one_prompt_at_least(complete):
    """Where the samples of one prompt exceed the budget, prompts are asked one by one."""
    _, calls = _completed(complete, PROMPTS, 5, k=3, temperature=0.7, budget=2)
    assert [call[:2] for call in calls] == [(1, 3)] * 5, f"with k=3 and budget=2, (prompts, samples) were {calls}"


def complete_passes_the_limit_on(complete):
    """`limit` is what generate gets as max_new_tokens."""
    for limit in (3, 80):
        found = {call[2] for call in _completed(complete, PROMPTS, limit)[1]}
        assert found == {limit}, f"limit={limit}, but max_new_tokens was {found}: a chain that is cut states no answer"


def complete_is_greedy_at_0(complete):
    """At temperature 0 do_sample is False, said so, and no temperature is given."""
    for *_, sampled, temperature in _completed(complete, PROMPTS, 5)[1] + _completed(complete, PROMPTS, 5, k=1)[1]:
        assert sampled is not True, "do_sample=True at temperature 0: a library divides by it, or refuses"
        assert temperature is None, f"temperature={temperature} beside greedy decoding: a library warns, or ignores it"
        assert sampled is False, "do_sample was not given: many a model's own settings sample where nothing is said"


def complete_samples_above_0(complete):
    """Above 0 do_sample is True and the temperature is passed on."""
    for wanted in (0.6, 1.2):
        for *_, sampled, temperature in _completed(complete, PROMPTS, 5, k=2, temperature=wanted)[1]:
            assert sampled is True, f"temperature={wanted} and do_sample={sampled}: all samples would be the same"
            assert temperature == wanted, f"temperature={wanted} was asked for, generate got {temperature}"


EXERCISES = {
    "2.1": Exercise(
        [
            greedy_takes_the_likeliest,
            greedy_reads_everything,
            greedy_stops_at_the_end,
            greedy_leaves_the_prompt_alone,
        ],
        [
            "A loop that runs while fewer than limit tokens are written and the last is not eos.",
            "Call next_logits(prompt + new), take the place of the largest logit, append it to new.",
            "max(range(len(logits)), key=lambda token: logits[token]) is the likeliest token.",
        ],
    ),
    "2.2": Exercise(
        [
            batch_is_a_rectangle,
            batch_pads_on_the_left,
            batch_masks_padding_alone,
            batch_counts_from_the_first_token,
            batch_uses_the_pad_that_it_is_given,
            batch_gives_the_logits_of_each_alone,
        ],
        [
            "First find how many pads each row needs: the longest length minus its own.",
            "All three parts follow from that number alone; none of them has to look at the ids.",
            "[pad] * gap + prompt; [0] * gap + [1] * len(prompt); [0] * gap + list(range(len(prompt)))",
        ],
    ),
    "2.3": Exercise(
        [stated_reads_the_number, stated_drops_decoration, stated_takes_the_last, stated_admits_there_is_none],
        [
            "str.rpartition cuts a text at the last place where something stands.",
            "Cut at the line's end before you strip; a full stop goes, a decimal point stays.",
            'text.rpartition("The answer is ")[2].split("\\n")[0], then strip, drop "$" and ",", and rstrip(".")',
        ],
    ),
    "2.4": Exercise(
        [
            complete_gives_a_text_without_k,
            complete_gives_a_list_for_any_k,
            complete_drops_the_prompt,
            complete_keeps_what_belongs_together,
            complete_stays_within_the_budget,
            complete_fills_the_budget,
            complete_asks_for_one_prompt_at_least,
            complete_passes_the_limit_on,
            complete_is_greedy_at_0,
            complete_samples_above_0,
        ],
        [
            "Work with `each = k or 1` samples throughout, and tell None from 1 only where you return.",
            "A batch holds max(1, budget // each) prompts; number i of them has texts[i * each : (i + 1) * each].",
            "Make a dictionary of settings, add the temperature only above 0, call generate(batch, **settings), and "
            "keep text[len(prompt):] of each text.",
        ],
    ),
}
