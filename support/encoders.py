"""From strings to vectors that say which texts are near: hashed n-grams without a model, and the encoders of
transformers.

    encode = load_encoder("sentence-transformers/all-MiniLM-L6-v2", "cuda")
    vectors = encode(["Tom has 3 apples.", "Ann has 4 pears."])  # (2, 384), unit vectors

An encoder's folder says how it is to be used (modules.json and what that names), and is obeyed as
sentence-transformers obeys it: the same model read with another pooling or another length gives other
neighbours. """

import functools
import inspect
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.benchmarks import reach_hub

# --------------------------------------------------------------------------------------------- hashed n-grams

HASH_DIM = 512
WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d]\w*|[^\w\s]")


def hash_group(
    question: str, choices: Sequence[str], responses: Sequence[tuple[str, str]]
) -> tuple[Tensor, Tensor, Tensor]:
    """A question (with its choices) and its G responses, each a (thinking, answer): unit vectors
    (HASH_DIM,), (G, HASH_DIM), (G, HASH_DIM) of hashed n-grams, zero where there is no word.

    Names and numbers are called by their place (see `by_place`), so that the same reasoning about other
    things looks the same. What a response introduces is known to this response only. """
    places: dict[str, str] = {}
    for word in signature(question):
        places.setdefault(word, f"f{len(places)}")
    query, vectors = hash_ngrams(by_place(" ".join([question, *choices]), places, "q")), {}
    for response in dict.fromkeys(responses):  # a policy repeats itself
        known = dict(places)
        vectors[response] = [hash_ngrams(by_place(part, known, "r")) for part in response]
    thinkings, answers = zip(*(vectors[response] for response in responses))
    return query, torch.stack(thinkings), torch.stack(answers)


def signature(question: str) -> list[str]:
    """The names of functions and of their arguments that a question mentions.

    >>> signature("Write the function area(a, b). It returns a times b.")
    ['area', 'a', 'b']
    """
    found = re.findall(r"([^\W\d]\w*)\(([\w\s,]*)\)", question)
    return [word for name, arguments in found for word in (name, *re.findall(r"[^\W\d]\w*", arguments))]


def mentions(text: str) -> set[str]:
    """The words and numbers of a text, numbers without thousands commas and trailing zeros.

    >>> sorted(mentions("2 boxes cost $1,200.50"))
    ['1200.5', '2', 'boxes', 'cost']
    """
    words = re.findall(r"\d+(?:\.\d+)?|[^\W\d]\w*", re.sub(r"(?<=\d),(?=\d{3})", "", text))
    return {re.sub(r"\.?0*$", "", word) if "." in word else word for word in words}


def by_place(text: str, places: dict[str, str], prefix: str) -> list[str]:
    """The words of a text, where numbers and capitalised words are called by the place of their first
    appearance; new ones are added to `places`. What the question mentions keeps its place in the response.

    >>> places = {}
    >>> by_place("Ann has 3 bags of 12.", places, "q"), by_place("3 * 12 = 36", places, "r")
    (['qc0', 'has', 'qn0', 'bags', 'of', 'qn1', '.'], ['qn0', '*', 'qn1', '=', 'rn0'])
    """
    words = WORD.findall(text)
    count = {
        kind: sum(place.startswith(kind) for place in places.values())
        for kind in (prefix + "n", prefix + "c")
    }
    for word in words:
        if word not in places and (word[0].isdigit() or word[0].isupper()):
            kind = prefix + ("n" if word[0].isdigit() else "c")
            places[word] = f"{kind}{count[kind]}"
            count[kind] += 1
    return [places.get(word, word) for word in words]


def hash_ngrams(words: list[str]) -> Tensor:
    """Unit vector (HASH_DIM,): signed counts of the 1- to 3-grams of some words; zero for no words.

    An n-gram's code is the CRC-32 of its words with blanks between. Its low bits are its place, its highest
    one the sign. CRC-32 reads on where it stopped, so an n-gram costs one step from the (n-1)-gram it begins
    with. """
    tails = [f" {word}".encode() for word in words]
    codes = [zlib.crc32(tail[1:]) for tail in tails]
    grams = list(codes)
    for n in (1, 2):
        codes = [zlib.crc32(tail, code) for tail, code in zip(tails[n:], codes)]
        grams += codes
    code = np.array(grams, dtype=np.uint32)
    counts = np.bincount(code % HASH_DIM, weights=np.where(code >> 31, 1.0, -1.0), minlength=HASH_DIM)
    return F.normalize(torch.from_numpy(counts.astype(np.float32)), dim=0)


# ----------------------------------------------------------------------------------- encoders of transformers

BATCH_TOKENS = 16_384  # of a batch, padding included
POOLINGS = ("mean", "cls", "lasttoken")
SETTINGS = [
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "*/*.json",
    "*_Dense/*",
]


class Recipe(NamedTuple):
    """What a folder says about the way from texts to vectors."""

    body: str  # the subfolder of model and tokenizer
    pooling: str  # one of POOLINGS
    include_prompt: bool  # are the prompt's tokens pooled?
    heads: Sequence[Callable[[Tensor], Tensor]]  # what follows the pooling: (n, d) -> (n, d')
    max_length: int | None  # in tokens
    lower: bool
    prompts: dict[str, str]
    default_prompt: str
    dim: int | None  # how many of the numbers are kept
    known: bool  # is there a modules.json?


def load_encoder(name: str, device: str | torch.device = "cpu") -> "TextEncoder":
    """An encoder of transformers, by the name of its folder or on the hub: encode(texts, prompt=None) -> (n,
    d).

    Modules (Transformer, Pooling, Dense, Normalize), pooling (mean, CLS, last token), length and prompts are
    the folder's; without modules.json the mean of the last hidden states is taken. Of the T5 family it is
    the encoder half. Weights are float32 whatever they are stored in: bfloat16 would make a text's vector
    depend on its batch.

    Raises ValueError, one line that begins with "encoder: ", where anything else is asked for, or where
    trial texts (empty, short, as long as the model takes) show a fault: better now than after the first
    batch of rollouts. """
    try:
        encoder = TextEncoder(str(name), device)
        encoder.try_out()
    except (
        Exception
    ) as error:  # from the hub, the files or the model's own code: all of it is said in one line
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(f"encoder: cannot use {str(name)!r}: {kind}{lines[0]}") from error
    return encoder


class TextEncoder:
    """See `load_encoder`. `recipe` holds what the folder says (prompts by name, too), `limit` the tokens it
    reads."""

    def __init__(self, name: str, device):
        folder = find_folder(name)
        self.recipe = read_recipe(folder)
        self.model = load_model(name, self.recipe.body).to(device).eval()
        self.tokenizer = load_tokenizer(name, self.recipe)
        self.limit = token_limit(self.model, self.tokenizer, self.recipe.max_length)
        self.heads = [head.to(device) if isinstance(head, nn.Module) else head for head in self.recipe.heads]
        self.inputs = set(inspect.signature(self.model.forward).parameters)
        self.width = None  # settled by the first text

    def __call__(self, texts: Sequence[str], prompt: str | None = None) -> Tensor:
        """Unit vectors (n, d) on the model's device, zero for a text without tokens. `prompt` is put before
        each text; None is the folder's default, which mostly is none."""
        prompt = self.recipe.default_prompt if prompt is None else prompt
        rows = self.tokenize([prompt + text for text in texts])
        skipped = 0 if self.recipe.include_prompt or not prompt else self.count_prompt(prompt)
        vectors = torch.zeros(len(texts), self.width or 0, device=self.model.device)
        for part in batches([len(row["input_ids"]) for row in rows]):
            found = self.embed([rows[i] for i in part], skipped)
            if not self.width:
                self.width, vectors = found.shape[1], found.new_zeros(len(texts), found.shape[1])
            vectors[part] = found
        return F.normalize(vectors, dim=-1)

    def tokenize(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """For each text what the model reads, neither padded nor longer than `limit`."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), truncation=self.limit is not None, max_length=self.limit)
        kept = [key for key in found if key in self.inputs and key != "attention_mask"]
        return [dict(zip(kept, row)) for row in zip(*(found[key] for key in kept))]

    def count_prompt(self, prompt: str) -> int:
        """How many tokens a prompt is, without the special one that ends a text."""
        ids = self.tokenizer(prompt)["input_ids"]
        return len(ids) - (ids[-1:] != [] and ids[-1] in self.tokenizer.all_special_ids)

    @torch.no_grad()
    def embed(self, rows: Sequence[dict[str, list[int]]], skipped: int = 0) -> Tensor:
        """Vectors (n, d), not normalised, of tokenized texts; the first `skipped` tokens are read but not
        pooled."""
        states, lengths = self.states(rows)
        vectors = pool(states, lengths, self.recipe.pooling, skipped)
        for head in self.heads:
            vectors = head(vectors)
        return vectors[:, : self.recipe.dim]

    @torch.no_grad()
    def states(self, rows: Sequence[dict[str, list[int]]]) -> tuple[Tensor, Tensor]:
        """Last hidden states (n, L, d) and the lengths (n,). Padding stands on the right whatever the
        tokenizer likes: there it moves no position, and what reads left to right never sees it."""
        device, lengths = self.model.device, torch.tensor([len(row["input_ids"]) for row in rows])
        inputs = {key: torch.zeros(len(rows), int(lengths.max()), dtype=torch.long) for key in rows[0]}
        inputs["input_ids"] += self.tokenizer.pad_token_id or 0
        for n, row in enumerate(rows):
            for key, values in row.items():
                inputs[key][n, : len(values)] = torch.tensor(values)
        inputs["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        output = self.model(**{key: value.to(device) for key, value in inputs.items()})
        if getattr(output, "last_hidden_state", None) is None:
            raise ValueError(
                f"a model of type {self.model.config.model_type} has no last hidden states of a text"
            )
        return output.last_hidden_state.float(), lengths.to(device)

    def try_out(self) -> None:
        """Embed an empty text, a short one and one that is too long, the short one again without padding
        beside it."""
        short, begun, long = "What burns?", "What burns? Dry wood", "What burns? " + "Dry wood burns. " * 200
        together, alone = self([short, long, ""]), self([short])
        if not together.isfinite().all():
            raise ValueError("the vectors of trial texts are not finite: are its weights whole?")
        if (together[0] @ alone[0]) < 0.999:
            raise ValueError(
                f"padding beside a text changes its vector: cosine {together[0] @ alone[0]:.3f}"
            )
        first, second = (self.states([row])[0][0, 0] for row in self.tokenize([short, begun]))
        if not self.recipe.known and torch.allclose(first, second, rtol=1e-4, atol=1e-5):
            raise ValueError(
                "it reads from left to right, as a causal LM does, and has no modules.json that says how to "
                "pool it; take an encoder, or `policy` for the states of the policy itself"
            )


def pool(states: Tensor, lengths: Tensor, pooling: str, skipped: int = 0) -> Tensor:
    """One of n vectors (n, d) from states (n, L, d), of which the first lengths (n,) are text, padding
    follows, and the first `skipped` are a prompt that is not pooled."""
    if pooling == "cls":
        return states[:, min(skipped, states.shape[1] - 1)]
    if pooling == "lasttoken":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    places = torch.arange(states.shape[1], device=states.device)
    mask = ((places >= skipped) & (places < lengths[:, None])).to(states)[..., None]  # (n, L, 1)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of the texts that have tokens, in batches of like length and of at most BATCH_TOKENS tokens.

    >>> list(batches([3, 0, 9000, 5, 9001]))
    [[4], [2], [3, 0]]
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    while order:
        size = max(1, BATCH_TOKENS // lengths[order[0]])
        yield order[:size]
        order = order[size:]


# ----------------------------------------------------------------------------- what an encoder's folder says


def find_folder(name: str) -> Path:
    """The folder with an encoder's settings: itself, or a copy of the hub's without the weights."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import constants, snapshot_download

    folder = Path(snapshot_download(name, allow_patterns=SETTINGS))
    if constants.HF_HUB_OFFLINE and not (folder / "modules.json").exists():
        print(
            f"encoder: the hub is out of reach and no modules.json of {name} is cached: taking the mean",
            file=sys.stderr,
        )
    return folder


def read_json(path: Path) -> dict | list:
    """What a file holds; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_recipe(folder: Path) -> Recipe:
    """Read modules.json and the files beside it, in the forms that sentence-transformers 2 to 6 write.

    Raises ValueError where a module, a pooling or a setting is none we know.
    """
    modules = read_json(folder / "modules.json")
    kinds = [module["type"] for module in modules]
    for kind in kinds:
        if not re.fullmatch(r"sentence_transformers\.(\w+\.)*(Transformer|Pooling|Dense|Normalize)", kind):
            raise ValueError(
                f"modules.json asks for the module {kind}; known: Transformer, Pooling, Dense, Normalize"
            )
    kinds = [kind.rsplit(".", 1)[1] for kind in kinds]
    if modules and (kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:])):
        raise ValueError(
            f"modules.json lists {', '.join(kinds)}; wanted are Transformer, Pooling, then Dense or Normalize"
        )
    paths = [folder / module["path"] for module in modules] or [folder]
    pooling, include_prompt = read_pooling(read_json(paths[1] / "config.json") if modules else {})
    heads = [read_dense(path) if kind == "Dense" else unit for kind, path in zip(kinds[2:], paths[2:])]
    body = next((read_json(path) for path in sorted(paths[0].glob("sentence_*_config.json"))), {})
    check_body(body)
    whole = read_json(folder / "config_sentence_transformers.json") if modules else {}
    prompts = {"query": "", "document": ""} | {
        key: text or "" for key, text in whole.get("prompts", {}).items()
    }
    default = whole.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ValueError(f"its default_prompt_name {default!r} is not among its prompts {', '.join(prompts)}")
    return Recipe(
        modules[0]["path"] if modules else "",
        pooling,
        include_prompt,
        heads,
        body.get("max_seq_length"),
        body.get("do_lower_case", False),
        prompts,
        prompts[default] if default else "",
        whole.get("truncate_dim"),
        bool(modules),
    )


def unit(vectors: Tensor) -> Tensor:
    """The module Normalize."""
    return F.normalize(vectors, dim=-1)


def read_pooling(config: dict) -> tuple[str, bool]:
    """Pooling and include_prompt of a Pooling module's config: `pooling_mode`, or in older files a flag for
    each.

    >>> read_pooling({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    ('cls', True)
    """
    flags = [
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value
    ]
    modes = config.get(
        "pooling_mode", [flag.removesuffix("_token").removesuffix("_tokens") for flag in flags]
    )
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise ValueError(f"it pools by {' + '.join(modes)}; known are {', '.join(POOLINGS)}, one at a time")
    return modes[0], config.get("include_prompt", True)


def read_dense(path: Path) -> nn.Module:
    """The module Dense: a linear layer and what follows it, with its weights."""
    config = read_json(path / "config.json")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    found = getattr(nn, activation.rsplit(".", 1)[-1], None)
    if not (activation.startswith("torch.nn.modules.") and isinstance(found, type)):
        raise ValueError(f"its Dense module has the activation {activation}; known are those of torch.nn")
    place = config.get("module_input_name", "sentence_embedding")
    if config.get("use_residual") or {place, config.get("module_output_name") or place} != {
        "sentence_embedding"
    }:
        raise ValueError("its Dense module has a residual, or does not turn the pooled vector into another")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    if (path / "model.safetensors").exists():
        from safetensors.torch import load_file

        weights = load_file(path / "model.safetensors")
    else:
        weights = torch.load(path / "pytorch_model.bin", map_location="cpu", weights_only=True)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    return nn.Sequential(linear, found())


def check_body(config: dict) -> None:
    """Raise ValueError where sentence_bert_config.json wants the model to be used in a way that we do not
    know."""
    plain = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    modality = config.get("modality_config", {"text": text})
    if set(modality) != {"text"} or modality["text"] != text:
        raise ValueError(
            f"its modality_config is {', '.join(modality)}, not the last hidden states of a text alone"
        )
    idle = ("max_seq_length", "do_lower_case", "modality_config", "unpad_inputs", *plain)
    asked = [
        key
        for key, value in config.items()
        if value and key not in idle or key in plain and value != plain[key]
    ]
    if asked:
        raise ValueError(f"its sentence_bert_config.json sets {', '.join(asked)}, which we do not know")


def load_model(name: str, subfolder: str) -> nn.Module:
    """The model without a head, of the T5 family its encoder half, in float32.

    Raises ValueError where the files lack weights: they would be drawn at random. (A pooler on top is not
    used.) """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as HALVES

    config = AutoConfig.from_pretrained(name, subfolder=subfolder, trust_remote_code=False)
    family, auto = [key for key, value in HALVES.items() if value.endswith("EncoderModel")], AutoModel
    if config.is_encoder_decoder or config.model_type in family:
        auto = AutoModelForTextEncoding
        if config.model_type not in family:
            raise ValueError(
                f"it is an encoder-decoder of type {config.model_type}; of these only {', '.join(family)}"
            )
    model, report = auto.from_pretrained(
        name, subfolder=subfolder, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
    )
    if missing := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise ValueError(
            f"its files lack {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}"
        )
    return model.requires_grad_(False)


def load_tokenizer(name: str, recipe: Recipe):
    """The tokenizer, which lowers the case first where the folder says so."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, subfolder=recipe.body, trust_remote_code=False)
    if recipe.lower:
        from tokenizers.normalizers import Lowercase, Sequence

        backend = tokenizer.backend_tokenizer
        backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])
    return tokenizer


def token_limit(model: nn.Module, tokenizer, max_length: int | None) -> int | None:
    """How many tokens of a text are read: the folder's max_seq_length, else what tokenizer and model allow,
    never more than a table of positions holds (the RoBERTa family's begins behind the padding's). None:
    there is no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [max_length] if max_length else [tokenizer.model_max_length, positions]
    for module in model.modules():
        table, padding = getattr(module, "position_embeddings", None), getattr(module, "padding_idx", None)
        if isinstance(table, nn.Embedding):
            limits.append(table.num_embeddings - (padding + 1 if isinstance(padding, int) else 0))
    limits = [
        limit for limit in limits if limit and 0 < limit < 2**31
    ]  # XLNet has -1, a tokenizer without one 10^30
    return min(limits, default=None)


# ---------------------------------------------------------- a function for questions and rollouts at once

Questions = Sequence[tuple[str, Sequence[str]]]  # B questions, each with its choices
Responses = Sequence[Sequence[tuple[str, str]]]  # B lists of G responses, each a (thinking, answer)
Vectors = tuple[Tensor, Tensor, Tensor]  # of questions (B, d), of thinkings and answers (B, G, d)


def make_embedder(name: str, tokenizer, device="cpu") -> Callable[..., Vectors]:
    """embed(questions, responses, rollouts, hidden) -> Vectors, by "hash", "policy" or a model of this name.

    `rollouts` (texts, mask and attention_mask) and `hidden` (N, P+T, d), N = B*G, are what "policy" reads.
    """
    if name == "hash":
        return embed_by_hash
    if name == "policy":
        return functools.partial(embed_by_policy, tokenizer)
    reach_hub(name)
    return functools.partial(embed_by_text, load_encoder(name, device))


def embed_by_hash(questions: Questions, responses: Responses, rollouts=None, hidden=None) -> Vectors:
    """Hashed n-grams of each group: see `hash_group`."""
    groups = [hash_group(*question, group) for question, group in zip(questions, responses, strict=True)]
    return tuple(torch.stack(part) for part in zip(*groups, strict=True))


def embed_by_text(encode: Callable, questions: Questions, responses: Responses, rollouts=None, hidden=None
                  ) -> Vectors:
    """What a sentence encoder makes of questions (with their choices), thinkings and answers."""
    pairs = [pair for group in responses for pair in group]
    texts = [" ".join([question, *choices]) for question, choices in questions]
    vectors = encode(texts + [part for pair in pairs for part in pair])  # (B + 2*B*G, d)
    queries, both = vectors[: len(texts)], vectors[len(texts) :].unflatten(0, (len(texts), -1, 2))
    return queries, both[:, :, 0], both[:, :, 1]


def embed_by_policy(tokenizer, questions: Questions, responses: Responses, rollouts, hidden: Tensor
                    ) -> Vectors:
    """Means of the policy's last hidden states (N, P+T, d) over the tokens of query, thinking and answer. The
    thinking's tokens are counted by tokenizing it once more."""
    size, length = len(rollouts.texts) // len(questions), rollouts.mask.shape[1]
    whole, mask = (part.to(hidden.device) for part in (rollouts.attention_mask, rollouts.mask))
    thinkings = [thinking for group in responses for thinking, _ in group]

    def tokens(texts: Sequence[str]) -> Tensor:  # N texts -> how many tokens each has (N,)
        counts = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
        return torch.tensor(counts, device=hidden.device)

    count = tokens(thinkings)
    if any(text.startswith("<") for text in rollouts.texts):  # the prompt's tag is none of its tokens
        count = count - (tokens(rollouts.texts) - mask.sum(1).long()).clamp(min=0)
    is_thinking = torch.arange(length, device=hidden.device) < count[:, None]  # (N, T)

    def mean(states: Tensor, mask: Tensor) -> Tensor:  # (n, L, d), (n, L) -> (n, d)
        return F.normalize((states * mask[..., None]).sum(1), dim=-1)

    queries = mean(hidden[::size, :-length], whole[::size, :-length])
    parts = [mean(hidden[:, -length:], mask * part) for part in (is_thinking, ~is_thinking)]
    return queries, *(part.unflatten(0, (len(questions), size)) for part in parts)
