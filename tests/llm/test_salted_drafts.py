"""Past outputs are drafted to requests of their own `cache_salt` alone."""

from __future__ import annotations

import pytest

from tests.llm.asking import greedy, prompts
from tests.llm.conftest import Open
from workbench import LLM

SUFFIX = {"method": "suffix", "num_speculative_tokens": 4, "adaptive": False}
SALTS = (None, "mine", "yours")


def accepted(llm: LLM, salt: str | None) -> int:
    """Drafts that stood, of one prompt's answer."""
    prompt = {"prompt_token_ids": prompts(2)[1]} | ({"cache_salt": salt} if salt else {})
    with llm.trace.record() as trace:
        llm.generate([prompt], greedy(max_tokens=24), use_tqdm=False)
    return int(trace.requests.accepted_drafts.sum())


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("earlier", SALTS)
def test_an_answer_is_drafted_again_to_its_own_salt_alone(
    open_llm: Open, earlier: str | None, caching: bool
) -> None:
    llm = open_llm(speculative_config=SUFFIX, enable_prefix_caching=caching)
    alone = accepted(llm, earlier)
    for salt in SALTS:
        if salt != earlier:
            assert accepted(llm, salt) == alone, "somebody else's answer was drafted"
    for salt in SALTS:
        assert accepted(llm, salt) > alone + 10, "one's own was not"
