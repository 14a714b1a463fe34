"""Which families of causal LMs can be trained: each that transformers knows, made tiny, through check_policy.

    python tests/families.py [NAME ...] [--out docs/families.md]

A configuration is made small by what its fields are called (SIZES). A family whose tiny model cannot be built
so is listed as not tried; that says nothing about it.
"""

import argparse
import copy
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import grpo
from support import packing, traits

WORDS, LARGEST = 96, 20_000_000  # words of a tiny model, parameters at most
SIZES = [  # the first pattern that a field's name matches gives its value
    (r"vocab_size", WORDS),
    (r"multiplier|scaling|theta|eps|beta|range|alpha|factor|temperature|token_id|drop|use_|bias$", None),
    (r"window|chunk_size|local_attention$|block_size", 8),
    (r"max_.*(positions|position_embeddings|seq_len)|n_positions|n_ctx|seq_length", 64),
    (r"(per_tok|top_?k|moe_k$|per_token|selected_experts|experts_per)", 2),
    (r"n_group|num_groups|topk_group|ngroups", 1),
    (r"(n|num).*shared_experts|dense_replace|num_dense", 1),
    (r"(num|n)_.*experts$|^num_experts$|moe_num_experts", 4),
    (r"key_value_heads|kv_heads|kv_n_heads|linear_num_key_heads", 2),
    (r"mamba_(num|n)_heads", 8),
    (r"(num|n)_?.*heads?$|^n_head$|attention_heads", 4),
    (r"(conv_kernel|d_conv|conv_L_cache|kernel)", None),
    (r"qk_rope_head_dim|qk_nope_head_dim|rotary_dim", 4),
    (r"qk_head_dim", 8),
    (r"lora_rank|_rank$", 8),
    (r"mamba_d_state|state_size|ssm_state", 8),
    (r"mamba_(d_head|head_dim|headdim)", 8),
    (r"head_(dim|size)|dim_head|^d_head$|d_kv|kv_channels", 8),
    (r"intermediate|ffn|inner|d_ff|mlp_dim|feed_forward", 32),
    (r"hidden_size|d_model|n_embd|embed_dim|embedding_size|emb_dim|word_embed|lru_width|hidden_dim", 32),
    (r"(num|n)_?.*layers?$|layers$|^n_layer$", 2),
]
SPECIAL = {  # what no rule says
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": None, "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
}


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """A small configuration of the same class: every kind of layer once, few of everything."""
    changed, fields = {}, {key: value for key, value in vars(config).items() if not key.startswith("_")}
    depths = [key for key in ("num_hidden_layers", "n_layer", "num_layers") if type(fields.get(key)) is int]
    depth = fields[depths[0]] if depths else 0
    kinds = [value for value in fields.values() if isinstance(value, list) and len(value) == depth > 1]
    first = {values.index(kind) for values in kinds for kind in values if not isinstance(kind, list)}
    kept = sorted(first | {0})
    kept = kept if len(kept) > 1 else [0, 0]
    for key, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            changed[key] = shrink(value)
        elif isinstance(value, list) and len(value) == depth > 1:
            changed[key] = [value[i] for i in kept]
        elif key in depths:
            changed[key] = len(kept)
        elif type(value) is int:
            small = next((size for pattern, size in SIZES if re.search(pattern, key)), None)
            changed[key] = value if small is None else min(value, small)
        if key.endswith("token_id") and type(changed.get(key)) is int and changed[key] >= WORDS:
            changed[key] = WORDS - 1
    if "kv_lora_rank" in fields:  # latent attention: no groups of heads, and widths that follow from others
        changed = {key: value for key, value in changed.items() if key not in ("head_dim", "qk_head_dim")}
        changed["num_key_value_heads"] = changed["num_attention_heads"]
    return type(config)(**changed | {"is_decoder": True} | SPECIAL.get(config.model_type, {}))


def build(name: str):
    """A tiny model of the family with weights under which everything matters."""
    torch.manual_seed(0)
    config = traits.without_noise(shrink(CONFIG_MAPPING[name]()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        count = sum(weight.numel() for weight in model.parameters())
    if count > LARGEST:
        raise ValueError(f"{count:,} parameters are not tiny")
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim > 1 and not re.search("A_log|dt_bias", key):
                weight.normal_(0, 1.2 * weight.shape[-1] ** -0.5)
        head = model.get_output_embeddings()
        for _ in range(20 if head is not None else 0):  # until a few words are likely
            logits = model(input_ids=traits.some_tokens(model), use_cache=False).logits.float()
            entropy = float(torch.distributions.Categorical(logits=logits).entropy().mean())
            if 1.5 < entropy < 4:
                break
            head.weight.mul_(0.7 if entropy <= 1.5 else 1.5)
    return model.eval()


def examine(name: str) -> tuple[str, str]:
    """'right', 'refused' or 'not tried', and how or why."""
    try:
        model = build(name)
        model(input_ids=traits.some_tokens(model), use_cache=False)
    except Exception as error:  # a tiny model that does not exist says nothing
        return "not tried", " ".join(f"{type(error).__name__}: {error}".split())[:90]
    try:
        grpo.check_policy(model, SimpleNamespace(eos_token_id=1, pad_token_id=0))
    except ValueError as error:
        return "refused", str(error).partition(": ")[2].split("; choose")[0]
    scale, cap = traits.after_head(model)
    notes = ["prompts shared" if packing.can_share(model) else "a row for every rollout",
             "" if traits.takes_padding(model) else "prompts of one length at a time",
             "" if (scale, cap) == (1.0, None) else "logits capped" if cap else "logits scaled"]
    return "right", ", ".join(note for note in notes if note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found = {}
    for name in options.names:
        found[name] = examine(name)
        print(f"{name:28} {found[name][0]:10} {found[name][1]}", flush=True)
    counts = Counter(status for status, _ in found.values())
    tried = ", ".join(f"{counts[status]} {status}" for status in ("right", "refused", "not tried"))
    text = f"""# Families of causal LMs

Made by `python tests/families.py --out docs/families.md` with transformers {transformers.__version__}: a tiny
model of each family with random weights, put through `grpo.check_policy` in float32. {tried} (the command's
rules make no tiny model of it, which says nothing about the family).

| family | | how, or why not |
| --- | --- | --- |
"""
    rows = [f"| {name} | {status} | {note.replace('|', '/')} |"
            for name, (status, note) in sorted(found.items())]
    if options.out:
        options.out.write_text(text + "\n".join(rows) + "\n")
    print(dict(counts))


if __name__ == "__main__":
    main()
