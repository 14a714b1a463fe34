"""What a policy may do is asked of it, and it is refused where it does not agree with itself."""

import pytest
import torch
from tiny import WORDS, draw, full_logits, make_model, make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    Gemma3Config,
    Gemma3TextConfig,
    MambaConfig,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
    RobertaConfig,
    XLMConfig,
)

import grpo
from support import packing, traits

SMALL = dict(vocab_size=WORDS, pad_token_id=0, bos_token_id=None, eos_token_id=1)
NARROW = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
NARROW |= dict(num_key_value_heads=1, max_position_embeddings=60, initializer_range=0.3)
GEMMA = dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"])
EXPERTS = dict(
    layer_types=["linear_attention", "full_attention"],
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
)
LINEAR = dict(
    linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8
)
ENCODER = dict(d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32, init_std=0.3)

MODELS = {  # name -> configuration, whether rows may have padding on the left, whether they may share a row
    "gemma3_text": (lambda: Gemma3TextConfig(**SMALL | NARROW | GEMMA), True, False),
    "gemma3": (lambda: Gemma3Config(text_config=SMALL | NARROW | GEMMA, vision_config=VISION), True, False),
    "qwen3_next": (lambda: Qwen3NextConfig(**SMALL | NARROW | EXPERTS | LINEAR), None, False),
    "mamba": (lambda: MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, **SMALL), False, False),
    "bart": (
        lambda: BartConfig(is_decoder=True, max_position_embeddings=60, **SMALL | ENCODER),
        False,
        False,
    ),
    "roberta": (lambda: RobertaConfig(is_decoder=True, **SMALL | NARROW), False, False),
}
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=28)


def build(config, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(traits.without_noise(config))
    model.get_output_embeddings().weight.data.normal_(0, 0.5)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        model.get_output_embeddings().bias.data[0] = -100  # padding is never said
    model.generation_config.eos_token_id = [1, 2]
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind_sample_and_score_what_they_say_row_by_row(name):
    config, padded, shared = MODELS[name]
    model = build(config())
    assert padded is None or traits.takes_padding(model) is padded
    assert packing.can_share(model) is shared
    grpo.check_policy(model, make_tokenizer())
    rollouts = draw(model, temperature=1.0)
    assert 1 < rollouts.mask.sum(1).unique().numel()
    slow = full_logits(model, rollouts.ids, rollouts.attention_mask, 12, 1.0)[0]
    scored = packing.forward_responses(model, rollouts.ids, rollouts.attention_mask, 12).logprobs
    torch.testing.assert_close(rollouts.logprobs, slow, atol=1e-4, rtol=0)
    torch.testing.assert_close(scored, slow, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "mistral"])
def test_ordinary_models_pass_and_keep_their_mode_and_random_numbers(kind):
    model = make_model(kind).train()
    before = torch.get_rng_state()
    grpo.check_policy(model, make_tokenizer())
    assert model.training and torch.equal(before, torch.get_rng_state())
    assert packing.can_share(model) is (kind != "mistral") and traits.takes_padding(model)


@pytest.mark.parametrize("what", ["its samples", "its tokens scored in one row in training mode"])
def test_a_model_that_disagrees_with_itself_is_refused_in_one_line(what):
    model = make_model()
    last = model.model.layers[-1]
    inner = last.forward
    weight = torch.randn(16, generator=torch.Generator().manual_seed(3))

    def forward(x, *args, **kwargs):
        off = kwargs.get("cache") is not None if what == "its samples" else model.training
        return inner(x, *args, **kwargs) + weight * off

    last.forward = forward
    with pytest.raises(
        ValueError, match=f"model: Qwen2ForCausalLM disagrees with itself: {what} .* nats .* choose"
    ) as e:
        grpo.check_policy(model, make_tokenizer())
    assert "\n" not in str(e.value) and not model.training


def test_a_model_that_draws_in_training_mode_is_refused():
    model = make_model()
    model.model.layers[0].register_forward_hook(
        lambda module, given, x: (
            x * (1 + 0.5 * torch.rand(1)) if module.training and torch.is_grad_enabled() else x
        )
    )
    grpo.check_policy(model, make_tokenizer())  # nothing is drawn where it looks first
    model.model.layers[0].register_forward_hook(lambda module, given, x: (torch.rand(1), x)[1])
    with pytest.raises(ValueError, match="draws at random in training mode .* gradients differ by"):
        grpo.check_policy(model, make_tokenizer())


def test_models_without_causality_or_cache_are_refused():
    roberta = RobertaConfig(is_decoder=False, **SMALL | NARROW)
    xlm = XLMConfig(emb_dim=16, n_layers=2, n_heads=2, n_words=WORDS, max_position_embeddings=60, **SMALL)
    for config in (roberta, xlm):
        with pytest.raises(ValueError, match=r"^model: \w+ .*choose another model"):
            grpo.check_policy(build(config), make_tokenizer())
    for rows in (1, 2):  # also where no row of a cache would have to be chosen
        model = build(xlm).train()
        with pytest.raises(ValueError, match="XLM.* keeps no cache .* choose another model"):
            grpo.sample(model, make_tokenizer(), ["w5 w6"], rows, 1, temperature=0)
        assert model.training


def test_dropout_and_jitter_are_found_in_every_part_of_a_configuration():
    experts = PhimoeConfig(attention_dropout=0.1, router_jitter_noise=0.2, input_jitter_noise=0.3)
    parts = Gemma3Config(text_config={"attention_dropout": 0.5}, vision_config={"attention_dropout": 0.25})
    nested = PreTrainedConfig(emb_pdrop=0.2, id2label={0: 0.5}, attention={"attn_dropout": 0.1})
    for config in (experts, parts, nested):
        assert traits.without_noise(config) is config
    assert experts.attention_dropout == experts.router_jitter_noise == experts.input_jitter_noise == 0
    assert parts.text_config.attention_dropout == parts.vision_config.attention_dropout == 0
    assert nested.emb_pdrop == nested.attention["attn_dropout"] == 0
    assert parts.text_config.rms_norm_eps > 0 and nested.id2label == {0: 0.5}


def test_positions_and_windows():
    assert traits.position_limit(make_model()) == 40
    assert (
        traits.position_limit(build(MODELS["roberta"][0]())) == 60 - 1
    )  # a place for padding, whose id is 0
    assert traits.position_limit(build(MODELS["mamba"][0]())) == float("inf")
    assert traits.windows(make_model("mistral", sliding_window=3).config) == 3
    assert traits.windows(MODELS["gemma3"][0]()) >= 4
