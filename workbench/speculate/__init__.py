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

The drafters there are
======================
`ngram.py` looks the last few tokens up in the request itself, `suffix.py` the longest run of them in the
request and in past outputs, and with `draft_model` a small model with the same vocabulary says what it would.
Outputs under one `cache_salt` (or adapter) are drafted to no request with another, or with none.

The seam
========
`Speculator` stands between drafters and the scheduler, and `Pace` decides how much is drafted: as many tokens
of each request as raise the tokens a second, by what steps cost and by how often drafts were right. A step
with drafts is planned when the one before it has been collected; while nobody drafts, steps overlap as ever.
A drafter is one of two things.

On the host: `Drafter` (`drafter.py`), tokens in, tokens out, arrays for all requests at once. It is asked
while a step is planned::

    plan:   Speculator.propose -> Drafter.propose(Ask) -> StepPlan.drafts

In the runner: `StepDrafter` (`runtime/step_drafter.py`), which may run on the device. The plan asks, the
drafter drafts when the step's tokens are known and before the result leaves the runner, and the next plan
has what it found; between the two, `Relay` (`relay.py`) keeps it::

    plan:   Speculator.asks -> StepPlan.asks: drafts wanted behind what this step samples, a count a line
    step:   model, sampling, verification -> StepDrafter.draft(Seen) -> StepResult.proposed
    commit: Speculator.committed -> Relay.hear
    plan:   Speculator.propose -> Relay.propose -> StepPlan.drafts

`draft` is called for every step, in the order of the plans, asked or not, so that a drafter can follow what
enters, leaves and grows as the runner itself does. What it is given, and what it may have:

- tokens: of the plan's additions, what was sampled, what was accepted, what a grammar forced; `Seen.lengths`
  says how long each request is by then. With `wants_hidden`, the model's hidden states of all tokens of the
  step, behind the final norm.
- a KV cache of its own in the same block pool: tensors with one more block than the pool has (block 0 is the
  null block), which the plan's block tables index like the model's. Reservation, prefix caching, preemption
  and the return of rejected drafts' blocks are the engine's, and the pool is sized for both. A block of a
  found prefix holds the model's keys, and the drafter's as far as it computed them: `Filled`
  (`runtime/draft_cache.py`) keeps count, and what lacks is computed before drafting. A draft's own keys may
  lie where the request has no block yet: keep scratch blocks behind the pool's.
- the device: `draft` runs behind the step's own work; like that, it computes under `torch.inference_mode()`.

A drafter that is wrong, late or silent costs time and no token. `runtime/draft_model.py` is one in full;
`runtime/draft_loading.py` makes it, and `speculate/assembly.py` the `Relay` beside it: a new one goes there.
"""
