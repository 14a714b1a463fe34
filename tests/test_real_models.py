"""Real models: a causal LM and a sentence encoder from folders that MEMREWARD_MODELS names.

    MEMREWARD_MODELS=DIR python -m pytest -q -m slow tests/test_real_models.py

DIR/smollm2-135m-instruct and DIR/all-minilm-l6-v2 are ordinary model folders
(HuggingFaceTB/SmolLM2-135M-Instruct, sentence-transformers/all-MiniLM-L6-v2). Skipped where they are absent.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import data
import grpo
import memreward
import train
from lab.evaluate import evaluate_model
from lab.runs import load_policy, render

MODELS = Path(os.environ.get("MEMREWARD_MODELS", "no-models"))
POLICY, ENCODER = MODELS / "smollm2-135m-instruct", MODELS / "all-minilm-l6-v2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (POLICY.is_dir() and ENCODER.is_dir()), reason="MEMREWARD_MODELS names no models"),
]
TASKS = [
    data.Task("1", "t", "math", "Tom has 3 apples and buys 4. How many has he?", answer="7"),
    data.Task("2", "t", "qa", "What burns?", ("ice", "dry wood", "water"), "B"),
    data.Task(
        "3",
        "t",
        "code",
        "Write the function double(x). It returns twice x.",
        tests=("assert double(4) == 8",),
    ),
]


@pytest.fixture(scope="module")
def policy():
    model, tokenizer = load_policy(train.Config(model=str(POLICY)), torch.float32)
    return model.eval(), tokenizer


def test_sampled_log_probabilities_are_the_models(policy):
    """The tokens of a rollout, scored one by one by the plain model without padding, cache or packing."""
    model, tokenizer = policy
    prompts = [render(tokenizer, task) for task in TASKS]
    assert all(
        "<|im_start|>user" in prompt and prompt.endswith("<|im_start|>assistant\n") for prompt in prompts
    )
    rollouts = grpo.sample(
        model, tokenizer, prompts, 2, 12, noise=grpo.uniform_noise(0, 0, ["a", "b", "c"], 2, 12)
    )
    scored = grpo.token_logprobs(model, rollouts.ids, rollouts.attention_mask, 12)
    for ids, seen, mask, one, two in zip(
        rollouts.ids, rollouts.attention_mask, rollouts.mask, rollouts.logprobs, scored
    ):
        ids, count = ids[seen.bool()], int(mask.sum())
        with torch.no_grad():
            expected = (
                model(input_ids=ids[None])
                .logits[0]
                .log_softmax(-1)[-count - 1 : -1]
                .gather(1, ids[-count:, None])[:, 0]
            )
        torch.testing.assert_close(one[:count], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(two[:count].detach(), expected, rtol=1e-3, atol=1e-4)


def test_encoder_is_the_masked_mean_of_the_last_states():
    from transformers import AutoModel, AutoTokenizer

    encode = memreward.make_encoder(str(ENCODER), None)
    rollouts = SimpleNamespace(texts=["3 + 4 = 7\n#### 7", "no idea", "wood\n#### B", "#### A"])
    queries, thinkings, answers = encode(TASKS[:2], rollouts)
    model, words = AutoModel.from_pretrained(ENCODER).eval(), AutoTokenizer.from_pretrained(ENCODER)
    for text, vector in (
        ("What burns? ice dry wood water", queries[1]),
        ("3 + 4 = 7\n", thinkings[0, 0]),
        ("B", answers[1, 0]),
    ):
        with torch.no_grad():
            states = model(**words(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(
            vector, torch.nn.functional.normalize(states.mean(0), dim=0), rtol=1e-3, atol=1e-5
        )
    assert (queries[0] @ queries[0]) == pytest.approx(1, abs=1e-5) and queries[0] @ queries[1] < 0.5


@pytest.mark.parametrize("encoder", [str(ENCODER), "auto"])
def test_a_short_run(tmp_path, encoder):
    rows = [
        {
            "id": f"{i}",
            "dataset": "sums",
            "domain": "math",
            "question": f"What is {i} + 2?",
            "answer": str(i + 2),
        }
        for i in range(12)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    results = train.train(
        train.Config(
            model=str(POLICY),
            encoder=encoder,
            tasks=str(tmp_path / "sums.jsonl"),
            steps=2,
            batch_size=2,
            group_size=4,
            max_response_length=24,
            learning_rate=1e-5,
            label_ratio=0.5,
            eval_samples=0,
            output_dir=str(tmp_path / "run"),
        )
    )
    assert results["after"]["tasks"]["all"] > 0 and results["audit"]["rollouts"] > 0
    again = evaluate_model(
        train.Config(
            model=str(tmp_path / "run"),
            tasks=str(tmp_path / "sums.jsonl"),
            eval_samples=0,
            max_response_length=24,
        )
    )
    assert again["greedy"] == results["after"]["greedy"]
