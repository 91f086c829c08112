"""Small tokenizers built on the spot from the problems themselves: nothing is downloaded. And how prompts become ids.

`build_tokenizer`: byte-level BPE over pieces cut by one regular expression, so every text survives encode -> decode,
whatever it holds. `build_word_tokenizer`: as few tokens as a task needs, each a word, a digit or a sign with the blank
before it. In both every digit is a token of its own, and a letter with a number (v3, r2) is one piece, since it names
one thing. `build_sentence_tokenizer`: pieces as T5 and Llama 2 cut them, numbers of several digits among them.
"""

from collections.abc import Iterable

PIECES = r"<<|>>|#### ?|(?: |(?<![A-Za-z]))[a-z][0-9]+(?![A-Za-z0-9])|[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]|\s"
WORDS = r"\n|<<|>>|#+|(?: |(?<![A-Za-z]))[a-z][0-9]+(?![A-Za-z0-9])| ?DIGITS| ?[A-Za-z]+| ?[^\sA-Za-z0-9]|\s"
PAD, EOS, SEP, UNKNOWN = "<pad>", "<eos>", "<sep>", "<unk>"
TURNS = ["<|im_start|>", "<|im_end|>"]  # what parts the turns of a conversation in ChatML


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1024):
    """A `PreTrainedTokenizerFast` of at most `vocab_size` tokens trained on `texts`; <pad> is 0 and <eos> is 1.

    The 256 byte tokens are always there, so that a text unlike the training texts still encodes. Where conversations
    are among the texts, each of TURNS is one special token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    turns = TURNS if any(TURNS[0] in text for text in texts) else []
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
        special_tokens=[PAD, EOS, *turns],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        extra_special_tokens=turns,
        clean_up_tokenization_spaces=False,
    )


def build_word_tokenizer(texts: Iterable[str], digits: bool = True):
    """A `PreTrainedTokenizerFast` whose tokens are the words, digits and signs that occur in `texts`, and no others.

    <pad> is 0, <eos> 1, <sep> 2, <unk> 3 (which a piece that never occurred becomes). Encoding and decoding a text of
    known pieces gives it back.
    digits  each digit is a token; else a whole number is one
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    pieces = Regex(WORDS.replace("DIGITS", "[0-9]" if digits else "[0-9]+"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = [PAD, EOS, SEP, UNKNOWN]
    tokenizer.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=32768, special_tokens=special, show_progress=False)
    )
    names = dict(zip(("pad_token", "eos_token", "sep_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, clean_up_tokenization_spaces=False)


def build_sentence_tokenizer(texts: Iterable[str], vocab_size: int = 600):
    """A `PreTrainedTokenizerFast` that cuts as SentencePiece does for T5 and Llama 2: ▁ for the blank before a word.

    At most `vocab_size` pieces; <pad> is 0, <eos> 1, <unk> 2 (which letters that never occurred become). As T5's it
    folds letters (NFKC) and takes every run of white space for one blank, so a text of several lines comes back on
    one; numbers are pieces of their own, of several digits where those are frequent.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex("▁?[0-9]+|▁?[^▁0-9]+"), behavior="isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = [PAD, EOS, UNKNOWN]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    )
    names = dict(zip(("pad_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, clean_up_tokenization_spaces=False)


def tokenize(tokenizer, prompts: list[str]) -> list[list[int]]:
    """Token ids of each prompt; one that begins with the tokenizer's first special token (a chat) gets no second."""
    rows, bos = tokenizer(prompts)["input_ids"] if prompts else [], tokenizer.bos_token_id
    return [row[1:] if bos is not None and row[:2] == [bos, bos] else row for row in rows]
