"""Tiny models, a tokenizer of twenty words and rollouts of them, for the tests of grpo.py and
support/packing.py."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

import grpo

WORDS = 20  # ids 0 to 3 are <pad>, <eos>, <end>, <unk>; the word w7 is the token 7
PROMPTS = ["w5 w6 w7 w8 w9", "w4", "w10 w11 w12", "w5 w5", "w13 w6 w4 w19"]


def make_tokenizer(pad="<pad>"):
    words = ["<pad>", "<eos>", "<end>", "<unk>"] + [f"w{i}" for i in range(4, WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token="<eos>", unk_token="<unk>"
    )


def make_model(kind="qwen2", eos=(1, 2), seed=0, attention="sdpa", **settings):
    torch.manual_seed(seed)
    words = dict(
        vocab_size=WORDS, bos_token_id=None, eos_token_id=1, pad_token_id=0, attn_implementation=attention
    )
    small = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=8,
        num_key_value_heads=1,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    if kind == "gpt2":
        config = GPT2Config(
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=40,
            initializer_range=0.1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **words,
        )
    else:
        kinds = {
            "qwen2": Qwen2Config,
            "llama": LlamaConfig,
            "mistral": MistralConfig,
            "gemma2": Gemma2Config,
            "granite": GraniteConfig,
            "cohere": CohereConfig,
        }
        config = kinds[kind](**words | small | settings)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = list(eos)
    return model.eval()


def draw(
    model, prompts=PROMPTS, group_size=4, length=12, temperature=0.7, tokenizer=None, step=0, **settings
):
    noise = grpo.uniform_noise(0, step, prompts, group_size, length)
    tokenizer = tokenizer or make_tokenizer()
    return grpo.sample(model, tokenizer, prompts, group_size, length, temperature, noise, **settings)


def full_logits(model, ids, mask, length, temperature):
    """Log-probabilities and entropy (N, T) from the logits of one unpadded row after the other."""
    scores = torch.zeros(2, len(ids), length)
    for i, row in enumerate(mask.bool()):
        n = int(row[-length:].sum())
        logprobs = (model(ids[i, row][None]).logits[0, -n - 1 : -1].float() / temperature).log_softmax(
            -1
        )  # (n, V)
        entropy = -(logprobs.exp() * logprobs).sum(-1).detach()
        chosen = logprobs[range(n), ids[i, row][-n:]]
        scores[:, i] = torch.nn.functional.pad(torch.stack([chosen, entropy]), (0, length - n))
    return scores


def gradients(model, logprobs):
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    (logprobs * weights).sum().backward()
    return [p.grad.clone() for p in model.parameters()]
