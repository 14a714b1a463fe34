"""Rebuild the built-in policy: a tiny causal LM that learnt the small world from imperfect demonstrations.

    python assets/make_policy.py [FOLDER=assets/policy] [STEPS=1500]

Ordinary supervised next-token training, no part of MemReward. The result is a Hugging Face model folder
(bf16) like any other. The questions of its demonstrations occur neither in training nor in the test set of
the small world, and in no wording of world_ood.
"""

import importlib
import itertools
import random
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
data = importlib.import_module("data")  # of the folder above, which is on the path only now

WORD = r"\n####|\n\([A-J]\)|\n| {4}|```python|```|[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]"
SPECIAL = ["<pad>", "<end>", "<unknown>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% if message.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BATCH, PEAK_LEARNING_RATE = 128, 3e-3


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Whole words, whole numbers, and each domain's instruction as one token: sequences stay short."""
    split = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)} | {
        str(n) for n in range(100)
    }
    vocabulary = {word: i for i, word in enumerate(SPECIAL + sorted(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in data.INSTRUCTIONS.values()])
    # The words are joined by spaces; then spaces go where neither prose nor Python has them.
    glue = [
        r"(?<=\n) ",
        r" (?=\n)",
        r"(?<=    ) (?=[a-z])",
        r" (?=[,.?:)\]_])",
        r"(?<=[(\[_]) ",
        r"(?<!return) (?=\[)",
        r"(?<=[a-z0-9]) (?=\()",
        r"(?<=\[[-:]) ",
    ]
    strip = [decoders.Replace(Regex(pattern), "") for pattern in glue]
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="<none>", cleanup=False), decoders.Fuse(), *strip]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=TEMPLATE,
        padding_side="left",
    )


def main(folder: str, steps: int):
    """Pre-train on `steps` batches of fresh demonstrations and save the model folder."""
    torch.manual_seed(0)
    rng, world = random.Random(0), data.small_world("pretrain", 0)
    examples = itertools.islice(data.small_world("pretrain", 1), 20000)
    tokenizer = make_tokenizer(
        [t for e in examples for t in (data.make_prompt(e.task), e.right, e.mistake, e.slip)]
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            attention_bias=True,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, steps, pct_start=0.1)
    for _ in (bar := tqdm(range(steps), desc="pre-training")):
        items = list(itertools.islice(world, BATCH))
        chats = [[{"role": "user", "content": data.make_prompt(item.task)}] for item in items]
        prompts = [
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
        ]
        prompts = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts]
        answers = [tokenizer(e.draw(rng) + "<end>", add_special_tokens=False).input_ids for e in items]
        rows = [torch.tensor(p + a) for p, a in zip(prompts, answers)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        for row, prompt in zip(labels, prompts):
            row[: len(prompt)] = -100  # only the response is learnt
        logits = model(input_ids=ids, attention_mask=ids != tokenizer.pad_token_id).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(arguments[0] if arguments else "assets/policy", int(arguments[1]) if len(arguments) > 1 else 1500)
