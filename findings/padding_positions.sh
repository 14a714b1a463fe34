#!/usr/bin/env bash
# A padding token that a RoBERTa-like model generates moves all positions behind it: with a cache, and without one, differently.
# Expected: reading a sequence token by token with a cache gives the logits of one pass over it, whatever the tokens are,
#   as it does for other causal models: what is padding is said by the attention mask.
# Happens: positions are counted from the ids, those equal to pad_token_id left out. One pass leaves a generated padding
#   token out; a cached step adds the whole length of the cache. From the second token after it the logits differ.
# Why it matters here: rollouts are sampled with a cache and scored in one pass. A policy that samples its padding token once
#   (every id can be sampled at temperature 1) trains on wrong ratios; the self-check refuses a model where it sees that.
# Version: transformers 5.24.0, torch 2.13.0. Source: create_position_ids_from_input_ids in modeling_roberta.py (camembert,
#   data2vec_text, xlm_roberta alike), https://github.com/huggingface/transformers/tree/v5.24.0/src/transformers/models
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
config = AutoConfig.for_model("roberta", vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                              num_attention_heads=2, max_position_embeddings=40, initializer_range=1.0, is_decoder=True,
                              bos_token_id=0, pad_token_id=1, eos_token_id=2)
model = AutoModelForCausalLM.from_config(config).eval()
gaps = {}
for name, token in (("another token", 9), ("the padding token", 1)):
    ids, cache, steps = torch.tensor([[5, 6, token, 7, 8, 4]]), None, []
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        for t in range(ids.shape[1]):
            output = model(input_ids=ids[:, t : t + 1], cache=cache, use_cache=True)
            cache, steps = output.cache, [*steps, output.logits]
    gaps[name] = (torch.cat(steps, 1) - whole).abs().amax(-1)[0].tolist()
    print(f"{name} third: differences by position {[round(gap, 3) for gap in gaps[name]]}")
sys.exit(max(gaps["another token"]) > 1e-3 or max(gaps["the padding token"]) < 0.1)
PYTHON
