"""Hashed n-grams, and encoders of transformers used as their folder says."""

import json

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from support import encoders
from support.encoders import hash_group, hash_ngrams, load_encoder, pool, read_pooling

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "what", "burns", "dry", "wood", "?", "query", ":"]
SMALL = dict(
    vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"))


def test_hashed_ngrams_are_what_they_were():
    """The places and signs were written down from the encoder of old, of which six and three n-grams are
    left here."""
    signs = {74: 1, 147: 1, 155: -1, 186: -1, 371: -1, 490: -1}
    vector = hash_ngrams(["Ann", "has", "3"])
    assert {i: x for i, x in enumerate(vector.tolist()) if x} == pytest.approx(
        {i: s / 6**0.5 for i, s in signs.items()}
    )
    counts = {67: 2, 211: 2, 252: -1, 304: -1, 463: 1, 505: -2}  # a, b and "a b" twice, three others once
    vector = hash_ngrams(["a", "b", "a", "b"])
    assert {i: x for i, x in enumerate(vector.tolist()) if x} == pytest.approx(
        {i: c / 15**0.5 for i, c in counts.items()}
    )
    assert not hash_ngrams([]).any()


def test_a_group_knows_its_question_and_not_its_neighbours():
    question, thinkings, answers = hash_group("Ann has 3 bags.", ("x",), [("3 + 5", "8"), ("3 + 9", "")])
    assert question.shape == (encoders.HASH_DIM,) and thinkings.shape == answers.shape == (
        2,
        encoders.HASH_DIM,
    )
    assert torch.equal(question, hash_ngrams("qc0 has qn0 bags . x".split()))
    assert torch.equal(thinkings[0], hash_ngrams("qn0 + rn0".split())) and torch.equal(
        thinkings[0], thinkings[1]
    )
    assert torch.equal(answers[0], hash_ngrams(["rn1"])) and not answers[1].any()


def tokenizer(special=True, **settings):
    vocab = {word: i for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        ends = [("<s>", 2), ("</s>", 3)]
        words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = dict(bos_token="<s>", eos_token="</s>") if special else {}
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **names, **settings)


def bert(**settings):
    torch.manual_seed(0)
    return BertModel(
        BertConfig(**SMALL, max_position_embeddings=32, initializer_range=0.5, **settings)
    ).eval()


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """Write an encoder: folder(model, words, pooling settings, modules), pooling None for no modules.json."""

    def make(model, words, pooling=None, modules=MODULES, **body):
        model.save_pretrained(tmp_path), words.save_pretrained(tmp_path)
        if pooling is not None:
            kinds = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
            write(tmp_path / "modules.json", kinds)
            write(tmp_path / "1_Pooling" / "config.json", pooling)
            write(tmp_path / "sentence_bert_config.json", body)
        return tmp_path

    return make


def states(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def test_pool_by_hand():
    values = torch.tensor([[[1.0], [2], [6], [99]], [[4], [8], [6], [2]]])  # the first text has three tokens
    lengths = torch.tensor([3, 4])
    assert pool(values, lengths, "mean").flatten().tolist() == [3, 5]
    assert pool(values, lengths, "cls").flatten().tolist() == [1, 4]
    assert pool(values, lengths, "lasttoken").flatten().tolist() == [6, 2]
    assert pool(values, lengths, "mean", skipped=1).flatten().tolist() == [4, pytest.approx(16 / 3)]
    assert pool(values, lengths, "cls", skipped=1).flatten().tolist() == [2, 8]


@pytest.mark.parametrize(
    "pooling, of", [("mean", lambda s: s.mean(0)), ("cls", lambda s: s[0]), ("lasttoken", lambda s: s[-1])]
)
def test_the_folder_names_the_pooling(folder, pooling, of):
    model = bert()
    encode = load_encoder(folder(model, tokenizer(pad_token="<pad>"), {"pooling_mode": pooling}))
    vectors = encode(["what burns ?", "wood", "what burns ? dry wood"])  # of 5, 3 and 7 tokens
    for vector, ids in zip(vectors, ([2, 4, 5, 8, 3], [2, 7, 3], [2, 4, 5, 8, 6, 7, 3])):
        torch.testing.assert_close(vector, F.normalize(of(states(model, ids)), dim=0), rtol=1e-4, atol=1e-5)


def test_without_modules_json_the_mean(folder):
    model = bert()
    vector = load_encoder(folder(model, tokenizer(pad_token="<pad>")))(["wood"])[0]
    torch.testing.assert_close(
        vector, F.normalize(states(model, [2, 7, 3]).mean(0), dim=0), rtol=1e-4, atol=1e-5
    )


def test_max_seq_length_counts_the_special_tokens(folder):
    model = bert()
    encode = load_encoder(folder(model, tokenizer(pad_token="<pad>"), {}, max_seq_length=4))
    expected = F.normalize(states(model, [2, 4, 5, 3]).mean(0), dim=0)
    torch.testing.assert_close(encode(["what burns ? dry wood"])[0], expected, rtol=1e-4, atol=1e-5)
    assert encode.limit == 4


def test_prompts(folder):
    path = folder(bert(), tokenizer(pad_token="<pad>"), {})
    write(
        path / "config_sentence_transformers.json", {"prompts": {"q": "query : "}, "default_prompt_name": "q"}
    )
    encode = load_encoder(path)
    assert torch.equal(encode(["wood"]), encode(["query : wood"], prompt=""))
    assert not torch.allclose(encode(["wood"]), encode(["wood"], prompt=""))
    write(path / "config_sentence_transformers.json", {"default_prompt_name": "p"})
    with pytest.raises(ValueError, match="^encoder: .*'p' is not among its prompts"):
        load_encoder(path)


def test_a_prompt_that_is_read_but_not_pooled(folder):
    model = bert()
    encode = load_encoder(folder(model, tokenizer(pad_token="<pad>"), {"include_prompt": False}))
    expected = F.normalize(states(model, [2, 9, 10, 7, 3])[3:].mean(0), dim=0)  # <s> query : is the prompt
    torch.testing.assert_close(encode(["wood"], prompt="query : ")[0], expected, rtol=1e-4, atol=1e-5)


def test_dense_and_normalize(folder):
    from safetensors.torch import save_file

    model, weight, bias = bert(), torch.randn(3, 16), torch.randn(3)
    path = folder(
        model,
        tokenizer(pad_token="<pad>"),
        {},
        (*MODULES, ("2_Normalize", "Normalize"), ("3_Dense", "Dense")),
    )
    settings = {
        "in_features": 16,
        "out_features": 3,
        "activation_function": "torch.nn.modules.activation.ReLU",
    }
    write(path / "3_Dense" / "config.json", settings)
    save_file({"linear.weight": weight, "linear.bias": bias}, path / "3_Dense" / "model.safetensors")
    unit = F.normalize(states(model, [2, 7, 3]).mean(0), dim=0)
    expected = F.normalize((weight @ unit + bias).clamp(min=0), dim=0)
    torch.testing.assert_close(load_encoder(path)(["wood"])[0], expected, rtol=1e-4, atol=1e-5)
    write(path / "3_Dense" / "config.json", {**settings, "activation_function": "mine.Odd"})
    with pytest.raises(ValueError, match="^encoder: .*mine.Odd"):
        load_encoder(path)


def test_the_encoder_half_of_t5(folder):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS),
        d_model=16,
        d_ff=32,
        d_kv=8,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    path = folder(T5ForConditionalGeneration(config), tokenizer(pad_token="<pad>"))
    half = T5EncoderModel.from_pretrained(path).eval()
    expected = F.normalize(states(half, [2, 7, 3]).mean(0), dim=0)
    torch.testing.assert_close(load_encoder(path)(["wood"])[0], expected, rtol=1e-4, atol=1e-5)


def test_bare_tokenizers(folder):
    """Neither maximum, nor padding, nor special tokens: an empty text has no token, and the table of
    positions ends."""
    encode = load_encoder(folder(bert(), tokenizer(special=False)))
    vectors = encode(["", "wood", "wood " * 100])
    assert encode.limit == 32 and vectors.isfinite().all() and not vectors[0].any()
    torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([0.0, 1, 1]))
    torch.testing.assert_close(encode(["wood"])[0], vectors[1], rtol=1e-4, atol=1e-5)
    assert encode([]).shape == (0, 16) and encode([""]).shape == (1, 16)


def test_batches_change_nothing(folder, monkeypatch):
    encode = load_encoder(folder(bert(), tokenizer(pad_token="<pad>")))
    texts = ["wood", "what burns ? dry wood", "", "dry wood"] * 5
    whole = encode(texts)
    monkeypatch.setattr(encoders, "BATCH_TOKENS", 15)
    torch.testing.assert_close(encode(texts), whole, rtol=1e-4, atol=1e-5)


def causal():
    torch.manual_seed(0)
    return Qwen3Model(Qwen3Config(**SMALL, head_dim=8, num_key_value_heads=1, initializer_range=0.5)).eval()


def test_a_causal_model_needs_a_folder_that_says_how(folder):
    words, model = tokenizer(), causal()
    with pytest.raises(ValueError, match="^encoder: .*from left to right.*no modules.json"):
        load_encoder(folder(model, words))
    encode = load_encoder(folder(model, words, {"pooling_mode": "lasttoken"}))
    vectors = encode(["wood", "what burns ? dry wood"])
    torch.testing.assert_close(
        vectors[0], F.normalize(states(model, [2, 7, 3])[-1], dim=0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "pooling, name",
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"cls \+ mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
    ],
)
def test_other_poolings_are_refused_by_name(pooling, name):
    with pytest.raises(ValueError, match=f"it pools by {name}"):
        read_pooling(pooling)


def test_refusals(folder, tmp_path):
    words = tokenizer(pad_token="<pad>")
    path = folder(bert(), words, {}, (*MODULES, ("2_LSTM", "LSTM")))
    with pytest.raises(ValueError, match="^encoder: .*sentence_transformers.models.LSTM"):
        load_encoder(path)
    with pytest.raises(ValueError, match="^encoder: .*query_expansion"):
        load_encoder(folder(bert(), words, {}, query_expansion={"length": 32}))
    (tmp_path / "modules.json").unlink(), (tmp_path / "sentence_bert_config.json").unlink()
    odd = BartModel(
        BartConfig(
            vocab_size=11,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    )
    with pytest.raises(ValueError, match="^encoder: .*encoder-decoder of type bart"):
        load_encoder(folder(odd, words))
    with pytest.raises(ValueError, match="^encoder: cannot use .*nowhere") as error:
        load_encoder(str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)


def test_faults_show_when_the_encoder_is_loaded(folder):
    words, model = tokenizer(pad_token="<pad>"), bert()
    path = folder(model, words)
    kept = {key: value for key, value in model.state_dict().items() if "layer.1" not in key}
    model.save_pretrained(path, state_dict=kept)
    with pytest.raises(ValueError, match="^encoder: .*its files lack 16 weights of a BertModel"):
        load_encoder(path)
    model = bert()
    model.encoder.layer[1].output.dense.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="^encoder: .*not finite"):
        load_encoder(folder(model, words))


def test_positions_of_roberta_begin_behind_the_padding(folder):
    torch.manual_seed(0)
    model = RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=34, pad_token_id=1))
    encode = load_encoder(folder(model, tokenizer(pad_token="<unk>")))  # its padding is number 1, as there
    assert encode.limit == 32 and encode(["wood " * 100]).isfinite().all()
