"""Speculative decoding: cheap guesses of what comes next, which the model verifies several at a time.

A drafter proposes up to k tokens behind a request's last one. They are planned like any other tokens, beside
prefill chunks and decodes, and one pass of the model says what it would have said in each of their places.
As long as that is the draft, the next draft counts too; the first that differs is replaced by what the model
said, and the rest is dropped::

    known      the cat sat on the
    drafts                          mat  and  slept
    sampled                         mat  and  purred  .
    output     the cat sat on the   mat  and  purred

What is sampled in a draft's place is sampled as ever: from the model's logits there, with the request's own
options, masks, penalties and random number of that position. So the output is that of decoding without
drafts, greedy and seeded alike, whatever the drafter does: a bad one costs time, never a token. (It is the
rejection sampling of Leviathan et al. 2023 for a drafter that is certain of its draft: accepted with the
probability that the model gives it, else replaced by the model's distribution without it.)

The seam
========
`Drafter` (`drafter.py`) is what one implements: tokens in, tokens out, arrays for all requests at once. A
drafter reads the tokens the engine knows, so that a step with drafts is planned when the one before it has
been collected; while nobody drafts, steps overlap as ever.

`Speculator` stands between drafters and the scheduler, and `Pace` decides how much is drafted: as many tokens
of each request as raise the tokens a second, by what steps cost and by how often drafts were right.
"""
