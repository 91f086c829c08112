"""Diffusion of Thoughts (DoT; Ye et al., 2402.07754) on a text diffusion model in the manner of Plaid (2305.18619).

The question stands there, clean; the whole chain of thought starts as noise and is denoised at once, in T steps. Every
position may still change while another one settles, so that an early mistake can be mended.

    config.py     every setting
    schedule.py   how much noise at which time: learned, monotone; times for a batch
    model.py      Plaid: embeddings of length one, a bidirectional transformer, a prior for its logits   (loads torch)
    sequences.py  problems as rows: a source that stays clean, a canvas that is denoised
    multi_pass.py DoT-MP: one thought a pass, what was thought so far becomes part of the source
    losses.py     the variational bound and its three terms, cross-entropy, masked diffusion             (loads torch)
    training.py   train(): transformers' Trainer                          trainer.py   its optimizer and clipping
    samplers.py   from noise to text: tables of coefficients, and the one loop that follows them
    generation.py batched answers, accuracy and cost, votes               repair.py    are injected errors mended?
    inspect.py    schedule, loss at each time, films, accuracy by steps   speed.py     beside one token after another
    film.py       denoising, watched                                      pictures.py  and drawn
    weights.py    the published weights
"""
