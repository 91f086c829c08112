"""Chains of continuous thought (Coconut; Hao et al., 2412.06769) and its controls, on any causal language model.

    question · [<start>] · thought ×n · [<end>] · the steps still written · answer

A thought is no token: its input is what the model's last hidden state was at the position before. A curriculum replaces
one written step after another by thoughts. Chain of thought, answers alone, the same curriculum without thoughts, with
pause tokens, and parallel thoughts are the same engine with another schedule or another thought.

    config.py      every setting; which method is which
    schedule.py    the curriculum as a table
    sequences.py   problems as token rows, rows as batches
    engine.py      the model that thinks: one forward pass, the loss      (loads torch)
    sources.py     where a thought comes from                             (loads torch)
    training.py    train(): transformers' Trainer with a curriculum
    generation.py  batched answers, accuracy and cost
    inspect.py     looking inside: decoding, causal checks, geometry, search trees
    pictures.py    all of this drawn                  explore.py   pages and widgets to look with
    official.py    the published YAML files and checkpoints
"""
