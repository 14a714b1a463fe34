#!/usr/bin/env bash
# One name, two meanings: config.logits_scaling multiplies the logits of one family and divides those of another.
# Expected: a field that several families share means the same in all; setting it to 4 makes logits 4 times smaller
#   (Granite introduced it so), and who forms logits from hidden states can apply it by its name.
# Happens: Granite divides by it, HyperCLOVA X multiplies with it. The factor between the two is 16.
# Why it matters here: log-probabilities formed behind our back, from hidden states and the output head, would be of
#   another temperature than the model samples with, without an error; so what happens behind the head is measured
#   on each model (support/traits.py), not read from its configuration.
# Version: transformers 5.24.0, torch 2.13.0. Source: modeling_granite.py and modeling_hyperclovax.py, end of forward,
#   https://github.com/huggingface/transformers/tree/v5.24.0/src/transformers/models
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM
ratios = {}
for family in ("granite", "hyperclovax"):
    logits = []
    for scaling in (1.0, 4.0):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                      num_attention_heads=2, num_key_value_heads=2, logits_scaling=scaling,
                                      bos_token_id=1, eos_token_id=2, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([[3, 4, 5]])).logits)
    ratios[family] = (logits[1] / logits[0]).median().item()
    print(f"{family}: logits_scaling 4 instead of 1 changes the logits by a factor of {ratios[family]:.2f}")
sys.exit(abs(ratios["granite"] - 0.25) > 0.01 or abs(ratios["hyperclovax"] - 4.0) > 0.01)
PYTHON
