"""Exercises of 02_prompting: generation one by one and in a batch, and reading a stated answer."""

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
}
