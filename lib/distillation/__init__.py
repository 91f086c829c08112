"""Distillation across tokenizers (Fu et al. 2023, 2301.12726): a teacher's distributions teach a student that cuts text
into other tokens.

    teacher     the teacher's solutions, and its k likeliest tokens at each of their positions
    targets     what the student should find likely at its own positions, by one of four ways of aligning
    training    the sparse KL divergence, and the training of a causal or encoder-decoder student
    published   the authors' data files, opened without running what is in them
    gold        TRL's GOLD trainer on the same pair, to compare
    pictures    ribbons between two tokenisations, the warping's table, where probability goes
"""
