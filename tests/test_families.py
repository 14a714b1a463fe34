"""Families of causal LMs: some of each kind always, all of them when there is time."""

import pytest
from families import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, examine

KINDS = {  # name -> how it must come out
    "qwen3": ("right", "prompts shared"),
    "phi": ("right", "prompts shared"),
    "gemma2": ("right", "a row for every rollout, logits capped"),
    "cohere": ("right", "prompts shared, logits scaled"),
    "bloom": ("right", "a row for every rollout"),
    "opt": ("right", "prompts shared"),
    "marian": ("right", "a row for every rollout, prompts of one length at a time"),
    "falcon_mamba": ("right", "a row for every rollout, prompts of one length at a time"),
    "qwen3_next": ("right", "a row for every rollout"),
    "jamba": ("right", "a row for every rollout"),
    "openai-gpt": ("refused", "keeps no cache"),
    "xlm": ("refused", "keeps no cache"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_family_of_each_kind(name):
    status, note = examine(name)
    assert (status, note) == KINDS[name] or status == "refused" == KINDS[name][0] and KINDS[name][1] in note


@pytest.mark.slow
def test_every_family_is_right_or_refused_in_one_line():
    found = {name: examine(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert sum(status == "right" for status, _ in found.values()) >= 120
    assert all("\n" not in note for _, note in found.values())
