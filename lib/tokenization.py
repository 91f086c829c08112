"""Small tokenizers built on the spot from the problems themselves: nothing is downloaded. And how prompts become ids.

Byte-level BPE over pieces cut by one regular expression, so every text survives encode -> decode, whatever it holds.
Every digit is a token of its own; a letter with a number (v3, r2) is one piece, since it names one thing.
"""

from collections.abc import Iterable

PIECES = r"<<|>>|#### ?|(?: |(?<![A-Za-z]))[a-z][0-9]+(?![A-Za-z0-9])|[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]|\s"
PAD, EOS = "<pad>", "<eos>"


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1024):
    """A `PreTrainedTokenizerFast` of at most `vocab_size` tokens trained on `texts`; <pad> is 0 and <eos> is 1.

    The 256 byte tokens are always there, so that a text unlike the training texts still encodes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def tokenize(tokenizer, prompts: list[str]) -> list[list[int]]:
    """Token ids of each prompt; one that begins with the tokenizer's first special token (a chat) gets no second."""
    rows, bos = tokenizer(prompts)["input_ids"] if prompts else [], tokenizer.bos_token_id
    return [row[1:] if bos is not None and row[:2] == [bos, bos] else row for row in rows]
