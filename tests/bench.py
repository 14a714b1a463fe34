"""How fast, as ratios: everything is measured alternately with what it is compared to, on one thread.

    OMP_WAIT_POLICY=PASSIVE python tests/bench.py              # all of it, about ten minutes
    OMP_WAIT_POLICY=PASSIVE python tests/bench.py step logits  # gnn step logits peak verifiers start memory
    python tests/bench.py memory                               # what fits on a GPU, computed
    python tests/bench.py run --against 88ab035 --rounds 5     # python train.py, beside an earlier revision
    python tests/bench.py processes --rounds 3                 # the same with two processes, beside one
    python tests/bench.py gpu                                  # on one: everything, 8 minutes (bench_gpu.py)

run and processes take minutes a round and run only where they are named; what else follows goes to train.py.
gnn wants torch-geometric, step and peak want trl; without them the comparison is left out, and says so. They
have no place in requirements.txt: install them in a virtual environment of their own. Seconds are CPU time
unless called wall clock, so that other work on the machine counts less. Not a test.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":  # before transformers is imported; pytest imports this file, too
    if sys.argv[1:2] != ["gpu"]:  # which may download a model
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import torch.nn.functional as F
from torch import nn

import gnn
import grpo

ROOT = Path(gnn.__file__).parent
torch.set_num_threads(1)


def cpu_seconds(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def alternate(functions: dict, rounds: int) -> dict[str, float]:
    """Median seconds of each function, called in turn; the first round warms up and does not count."""
    times = [[cpu_seconds(function) for function in functions.values()] for _ in range(rounds + 1)]
    return dict(zip(functions, map(statistics.median, zip(*times[1:]))))


def row(work: str, result: str, goal: str = "") -> None:
    print(f"{work:62} {result:>18}  {goal}", flush=True)


def installed(package: str) -> bool:
    if not find_spec(package):
        print(f"({package} is not installed, so nothing is compared with it)")
    return bool(find_spec(package))


# ----------------------------------------------------------------------------------------- the reward network

G, DIM, K = 8, 384, 7


def embeddings(count: int, seed: int) -> gnn.Groups:
    """Queries around 32 centres, thinkings around their query, answers around their thinking."""
    random = torch.Generator().manual_seed(seed)

    def near(x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x + 0.8 * torch.randn(x.shape, generator=random) / DIM**0.5, dim=-1)

    centres = torch.randn(32, DIM, generator=torch.Generator().manual_seed(0))
    query = near(F.normalize(centres[torch.randint(32, (count,), generator=random)], dim=-1))
    thinking = near(query[:, None].expand(-1, G, -1))
    return gnn.Groups(query, thinking, near(thinking), torch.rand(count, G, 3, generator=random))


def geometric(width: int = 512):
    """The network the paper describes, by torch_geometric: two heterogeneous GATv2 layers, all nodes."""
    from torch_geometric.nn import GATv2Conv, HeteroConv


    def attention() -> nn.Module:
        return GATv2Conv(width, width // 4, heads=4, dropout=0.1, add_self_loops=False)

    edges = [("q", "to", "t"), ("t", "to", "q"), ("t", "to", "a"), ("a", "to", "t"), ("q", "like", "q")]
    model = nn.Module()
    model.start = nn.ModuleDict({kind: nn.Linear(DIM, width) for kind in "qta"})
    model.layers = nn.ModuleList(HeteroConv({edge: attention() for edge in edges}) for _ in range(2))
    model.query = nn.Sequential(nn.Linear(width, width // 2), nn.LayerNorm(width // 2))
    model.rollout = nn.Sequential(nn.Linear(2 * width + 3, width // 2), nn.LayerNorm(width // 2))

    def forward(groups: gnn.Groups, memory: int) -> torch.Tensor:  # the first `memory` groups may be heard
        count = len(groups.queries)
        cosines = groups.queries @ groups.queries[:memory].T
        cosines[:memory].fill_diagonal_(-2)
        rollout, query = torch.arange(count * G), torch.arange(count)
        owner, pair = torch.stack([rollout // G, rollout]), torch.stack([rollout, rollout])
        near = torch.stack([cosines.topk(K).indices.flatten(), query.repeat_interleave(K)])
        index = dict(zip(edges, (owner, owner.flip(0), pair, pair, near)))
        x = {kind: model.start[kind](part.flatten(0, -2)) for kind, part in zip("qta", groups)}
        for layer in model.layers:
            x = {kind: h.relu() for kind, h in layer(x, index).items()}
        rollouts = model.rollout(torch.cat([x["t"], x["a"], groups.features.flatten(0, 1)], -1))
        return (model.query(x["q"])[:, None] * rollouts.view(count, G, -1)).sum(-1) / (width // 2)**0.5

    model.forward = forward
    return model


def filled_memory(count: int, **others):
    from memreward import ExperienceMemory

    settings = dict(neighbors=K, gnn="gcn", gnn_networks=1, gnn_hidden=512, gnn_layers=2, gnn_dropout=0.1,
                    gnn_epochs=1, gnn_patience=1, gnn_learning_rate=1e-3, gnn_weight_decay=1e-2,
                    groups_per_query=1) | others
    memory, rewards = ExperienceMemory(SimpleNamespace(**settings)), torch.rand(count, G).round()
    memory.remember([str(n) for n in range(count)], *embeddings(count, 1), rewards)
    memory.fit(seed=0)
    return memory


def bench_gnn() -> None:
    """Prediction and fitting against the whole-graph network of torch_geometric: one of ours of its width,
    and the default memory, five networks of width 64."""
    new, small, large = embeddings(102, 2), filled_memory(1104), filled_memory(4416)
    default = filled_memory(1104, gnn="mixed", gnn_networks=5, gnn_hidden=64)
    ids, rewards = torch.arange(1104), small.rewards
    known = gnn.Groups(*(part.float() for part in small.groups))

    def fit(memory, networks: int, epochs: int) -> None:
        for model in memory.models[:networks]:
            gnn.fit(model, known, rewards, ids, K, ids % 5 == 0, epochs)

    predict = {"small": lambda: small.predict(*new), "large": lambda: large.predict(*new),
               "default": lambda: default.predict(*new)}
    epochs = {f"{name} {count}": lambda memory=memory, networks=networks, count=count:
              fit(memory, networks, count)
              for name, memory, networks in (("wide", small, 1), ("default", default, 2)) for count in (1, 3)}
    if compared := installed("torch_geometric"):
        other = geometric()
        optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
        both = gnn.Groups(*map(torch.cat, zip(known, new)))

        def epoch() -> None:
            loss = F.binary_cross_entropy_with_logits(other.train().forward(known, 1104), rewards)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        predict["other"] = torch.inference_mode()(lambda: other.eval().forward(both, 1104)[1104:].sigmoid())
        epochs["other"] = epoch
    seconds, fits = alternate(predict, 8), alternate(epochs, 4)
    row("predict 102 x 8 rollouts from a memory of 1,104 x 8", f"{seconds['small'] * 1e3:.0f} ms")
    growth = seconds["large"] / seconds["small"]
    row("  growth of that time with 4,416 memory queries", f"{growth:.2f} x", "under 1.3")
    row("  by the default memory", f"{seconds['default'] * 1e3:.0f} ms")
    held, asked, grown = in_process("_large")
    row("  100,000 queries x 8 in it: memory of the process", f"{held / 1e3:.2f} GB", "under 2")
    row("    and at most while it predicts; remembers", f"{asked / 1e3:.2f}; {grown / 1e3:.2f} GB")
    epoch_seconds = {name: (fits[f"{name} 3"] - fits[f"{name} 1"]) / 2 for name in ("wide", "default")}
    epoch_seconds["default"] /= 2  # the mean of a GCN's and an MLP's
    for name, seconds_each in epoch_seconds.items():
        row(f"one epoch of fitting on 1,104 x 8, validation included, {name}", f"{seconds_each:.3f} s")
    if compared:
        for name, mine in (("small", "wide"), ("default", "default")):
            row(f"  prediction, faster than torch_geometric, {mine}",
                f"{seconds['other'] / seconds[name]:.1f} x", "50")
            row(f"  epoch, faster than torch_geometric, {mine}",
                f"{fits['other'] / epoch_seconds[mine]:.2f} x", "10")


def large(count: int = 100_000) -> None:
    """Memory (MB) of this process with a memory of `count` queries, beyond what it had without; at most while
    102 groups are judged, and while 16 are remembered."""
    memory, new = filled_memory(1104, gnn="mixed", gnn_networks=5, gnn_hidden=64), embeddings(102, 2)
    memory.predict(*new)
    before, rows = resident(), torch.arange(count) % len(memory)
    memory.groups, memory.rewards = memory.groups.rows(rows), memory.rewards[rows]
    memory.ids = [str(n) for n in range(count)]
    levels = [resident()]
    memory.predict(*new)
    levels.append(resident("VmHWM"))
    memory.remember([f"new {n}" for n in range(16)], *new.rows(slice(16)), torch.zeros(16, G))
    print(*((level - before) * 2**20 / 1e6 for level in (*levels, resident("VmHWM"))))


# ------------------------------------------------------------------------------------------- one GRPO step

WORDS, PROMPTS, LENGTH = 512, 16, 32  # words, prompts a step, tokens of a prompt and of a completion


def tiny(words: int = WORDS, width: int = 128, layers: int = 4):
    """A Qwen2 of 1.05 M parameters, fp32, and a tokenizer whose words are w3, w4, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=words, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=1, bos_token_id=None))
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{n}": n for n in range(3, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return model.float(), PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>",
                                                  eos_token="<eos>", unk_token="<unk>", padding_side="left")


def make_prompts(count: int) -> list[str]:
    ids = torch.randint(3, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(0))
    return [" ".join(f"w{n}" for n in line) for line in ids.tolist()]


def even_share(ids: list[int]) -> float:
    """A reward that costs nothing and is never the same in a group."""
    return sum(n % 2 == 0 for n in ids) / max(len(ids), 1)


class OurStep:
    """One GRPO step of this project: sample, reward, reference pass, update."""

    def __init__(self, accelerator, share_prompts: bool):
        self.model, self.tokenizer = tiny()
        self.reference, _ = tiny()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=0.0)
        self.model, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.accelerator, self.share, self.step = accelerator, share_prompts, 0
        self.prompts = make_prompts(4 * PROMPTS)
        self.seconds = {"sample": [], "reference": [], "update": []}

    def __call__(self) -> None:
        prompts = self.prompts[self.step % 4 * PROMPTS:][:PROMPTS]
        self.step += 1
        clock = [time.process_time()]
        noise = grpo.uniform_noise(0, self.step, prompts, G, LENGTH)
        rollouts = grpo.sample(self.model, self.tokenizer, prompts, G, LENGTH, noise=noise)
        counts = rollouts.mask.sum(1).long().tolist()
        rewards = [even_share(ids[:n]) for ids, n in zip(rollouts.ids[:, -LENGTH:].tolist(), counts)]
        clock.append(time.process_time())
        with torch.no_grad():
            reference = grpo.forward_responses(self.reference, rollouts.ids, rollouts.attention_mask, LENGTH,
                                               batch_size=32, share_prompts=self.share).logprobs
        clock.append(time.process_time())
        advantages = grpo.group_advantages(torch.tensor(rewards).view(PROMPTS, G)).flatten()
        grpo.policy_update(self.model, self.optimizer, self.accelerator, rollouts, advantages, reference,
                           micro_batch_size=32, share_prompts=self.share)
        clock.append(time.process_time())
        for stage, start, stop in zip(self.seconds, clock, clock[1:]):
            self.seconds[stage].append(stop - start)


def trl_trainer(steps: int, callbacks: list, model=None, tokenizer=None, prompts=None, **changes):
    """TRL's trainer, set to do the same work: with the tiny model, or with a given one."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(**dict(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, gradient_checkpointing=False,
        beta=0.001, epsilon=0.2, loss_type="grpo",
        per_device_train_batch_size=PROMPTS * G, gradient_accumulation_steps=1, steps_per_generation=1,
        num_iterations=1, num_generations=G, max_completion_length=LENGTH,
        temperature=1.0, top_p=1.0, top_k=0,
        learning_rate=1e-6, weight_decay=0.0, lr_scheduler_type="constant", max_grad_norm=1.0,
        max_steps=steps, logging_steps=10_000, save_strategy="no", report_to="none", disable_tqdm=True,
        seed=0) | changes)
    if model is None:
        model, tokenizer = tiny()
        model.save_pretrained(config.output_dir)  # the trainer loads its reference from there
        model.config._name_or_path = config.output_dir
    return GRPOTrainer(model=model, args=config, processing_class=tokenizer, callbacks=callbacks,
                       train_dataset=Dataset.from_dict({"prompt": prompts or make_prompts(4 * PROMPTS)}),
                       reward_funcs=lambda completion_ids, **_: [even_share(ids) for ids in completion_ids])


def bench_step(rounds: int = 9) -> None:
    """One GRPO step, with every group's prompt computed once and with none shared, against TRL's."""
    from accelerate import Accelerator

    if not installed("trl"):
        steps = {name: OurStep(Accelerator(cpu=True), name == "shared") for name in ("shared", "plain")}
        seconds = alternate(steps, rounds)
    else:
        from transformers import TrainerCallback

        times = {"trl": [], "shared": [], "plain": []}

        class Alternate(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                self.start = time.process_time()

            def on_step_end(self, *args, **kwargs):
                times["trl"].append(time.process_time() - self.start)
                turn = 1 if len(times["trl"]) % 2 else -1  # the first finds colder caches
                for name in ("shared", "plain")[::turn]:
                    times[name].append(cpu_seconds(steps[name]))

        trainer = trl_trainer(rounds + 2, [Alternate])
        steps = {"shared": OurStep(trainer.accelerator, True), "plain": OurStep(trainer.accelerator, False)}
        torch.set_num_threads(1)
        trainer.train()
        seconds = {name: statistics.median(values[2:]) for name, values in times.items()}
    row("one GRPO step, 16 prompts x 8 rollouts, shared prompts", f"{seconds['shared'] * 1e3:.0f} ms")
    for stage in steps["shared"].seconds:
        ms = [1e3 * statistics.median(step.seconds[stage][2:]) for step in steps.values()]
        row(f"  {stage}; in brackets: no prompt shared", f"{ms[0]:.0f} ({ms[1]:.0f}) ms")
    if "trl" in seconds:
        row("  faster than TRL, prompts shared", f"{seconds['trl'] / seconds['shared']:.2f} x", "1.8")
        row("  faster than TRL, every prompt computed", f"{seconds['trl'] / seconds['plain']:.2f} x", "1.25")


# ------------------------------------------------------------------------------------------- memory


def resident(which: str = "VmRSS") -> float:
    """MiB of this process now (VmRSS), or at most so far (VmHWM)."""
    line = next(line for line in open("/proc/self/status") if line.startswith(which))
    return int(line.split()[1]) / 1024


def in_process(*arguments) -> list[float]:
    """Run a part of this file in a process of its own; returns the numbers of its last line."""
    result = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return [float(x) for x in result.stdout.split("\n")[-2].split()]


def bench_peak() -> None:
    """Peak memory of four steps."""
    ours = in_process("_peak", "ours")
    row("peak memory of that step, above the level before it", f"{ours[1] - ours[0]:.0f} MiB")
    if installed("trl"):
        other = in_process("_peak", "trl")
        row("  of TRL's step", f"{other[1] - other[0]:.0f} MiB", "ours below")
        row("  of the whole process, ours and TRL's", f"{ours[1]:.0f}, {other[1]:.0f} MiB", "ours below")


def peak(which: str) -> None:
    from accelerate import Accelerator

    if which == "ours":
        step = OurStep(Accelerator(cpu=True), True)

        def run() -> None:
            for _ in range(4):
                step()

    else:
        run = trl_trainer(4, []).train
    before = resident()
    run()
    print(before, resident("VmHWM"))


def bench_logits() -> None:
    """Forward and backward pass of one completion with 151,936 words."""
    for length in (128, 512, 2048):
        before, after = in_process("_logits", "ours", length)
        row(f"log-probabilities, {length} tokens, 151,936 words: peak", f"{after - before:.0f} MiB",
            "the same for all")
        if length < 2048:
            before, after = in_process("_logits", "full", length)
            row("  the same from (batch, length, vocabulary) logits", f"{after - before:.0f} MiB")


def logits(which: str, length: int) -> None:
    model, _ = tiny(words=151_936, width=64, layers=1)
    ids, mask = torch.randint(3, 1000, (1, length + 8)), torch.ones(1, length + 8, dtype=torch.long)
    model(ids[:, :4]).logits.sum().backward()  # gradients exist
    before = resident()
    if which == "ours":
        grpo.forward_responses(model, ids, mask, length).logprobs.sum().backward()
    else:
        all_logits = model(ids, logits_to_keep=length + 1).logits[:, :-1]
        all_logits.log_softmax(-1).gather(-1, ids[:, -length:, None]).sum().backward()
    print(before, resident("VmHWM"))


def bench_memory() -> None:
    """Computed, not measured: what training Qwen2.5 with prompts and responses of 1,024 tokens holds."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shapes = {"Qwen2.5-1.5B": (1536, 8960, 28, 12), "Qwen2.5-3B": (2048, 11008, 36, 16)}
    print("computed, GB (10^9 bytes); 2,048 tokens a rollout, bf16 autocast with fp32 weights")
    print(f"{'':14}{'GPUs':>5}{'weights,':>11}{'AdamW':>8}{'bf16':>8}{'bf16':>9}{'bf16':>8}"
          f"{'rollout, update':>24}{'rollout,':>11}{'left for rollouts on':>27}")
    print(f"{'':14}{'':5}{'gradients':>11}{'':8}{'ref.':>8}{'sampler':>9}{'casts':>8}"
          f"{'plain':>12}{'checkpointed':>14}{'sampling':>10}{'24':>10}{'40':>9}{'80':>9}")
    for name, (width, inner, layers, heads) in shapes.items():
        config = Qwen2Config(vocab_size=151_936, hidden_size=width, intermediate_size=inner,
                             num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=2,
                             tie_word_embeddings=True)
        with torch.device("meta"):
            weights = sum(p.numel() for p in Qwen2ForCausalLM(config).parameters()) / 1e9
        narrow = 2 * 2 * width // heads  # keys and values
        layer = 4 * 4 * width + 2 * (6 * width + 3 * narrow + 4 * inner)  # fp32 stream, norms; bf16 the rest
        plain, checkpointed = 2048 * layers * layer / 1e9, 2048 * (layers * 4 * width + layer) / 1e9
        cache = 2048 * layers * narrow * 2 / 1e9
        for gpus in (1, 8):
            # weights, gradients and AdamW's moments are sharded; reference and sampling copy are whole
            state = [8 * weights / gpus, 8 * weights / gpus, 2 * weights, 2 * weights, 2 * weights / gpus]
            left = [size - sum(state) - 1.5 for size in (24, 40, 80)]  # 1.5: chunks of logits, the context
            shown = [f"{x:.0f}" if x > checkpointed else "no" for x in left]
            print(f"{name:14}{gpus:5}{state[0]:11.1f}{state[1]:8.1f}{state[2]:8.1f}{state[3]:9.1f}"
                  f"{state[4]:8.1f}{plain:12.1f}{checkpointed:14.2f}{cache:10.3f}{shown[0]:>10}"
                  f"{shown[1]:>9}{shown[2]:>9}")


# ------------------------------------------------------------------------------------------- verifiers, start


def bench_verifiers() -> None:
    """Milliseconds a rollout of the built-in policy, beside what sampling it costs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from data import load_tasks, verify_batch
    from lab.runs import render

    folder = ROOT / "assets" / "policy"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tasks = load_tasks("world", "test", 96)
    prompts = [render(tokenizer, task) for task in tasks]
    texts = grpo.sample(model, tokenizer, prompts, G, 48).texts
    start = time.perf_counter()
    grpo.sample(model, tokenizer, prompts, G, 48)
    row("sampling, a rollout of the small world",
        f"{(time.perf_counter() - start) / len(texts) * 1e3:.2f} ms")
    for domain in ("math", "qa", "code"):
        places = [n for n, task in enumerate(tasks) if task.domain == domain]
        pairs = [(tasks[n], texts[n * G + g]) for n in places for g in range(G)]
        verify_batch(*zip(*pairs[:2]))
        start = time.perf_counter()
        verify_batch(*zip(*pairs))
        row(f"  verifying it, {domain} (wall clock)",
            f"{(time.perf_counter() - start) / len(pairs) * 1e3:.3f} ms")


def bench_start() -> None:
    """Wall-clock seconds until `--help`, and a setting that is refused, are through."""
    for flags in (["--help"], ["--label_ratio", "2"]):
        times = []
        for _ in range(4):
            start = time.perf_counter()
            subprocess.run([sys.executable, ROOT / "train.py", *flags], capture_output=True)
            times.append(time.perf_counter() - start)
        row(f"python train.py {' '.join(flags)}", f"{statistics.median(times):.2f} s", "under 2")


# ------------------------------------------------------------------------------------------- whole commands


def whole_runs(commands: dict[str, tuple[Path, list[str]]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds, by the clock and of all processors together, of commands run in turn: each a project's
    folder and what follows `python`. Prints each run's table."""
    times = {name: [] for name in commands}
    for number in range(rounds):
        for name, (folder, arguments) in list(commands.items())[:: 1 if number % 2 else -1]:
            before, start = os.times(), time.perf_counter()
            with tempfile.TemporaryDirectory() as output:
                command = [sys.executable, *arguments, "--output_dir", f"{output}/run"]
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            after, wall = os.times(), time.perf_counter() - start
            busy = after.children_user + after.children_system - before.children_user - before.children_system
            times[name].append((wall, busy))
            lines = done.stdout.splitlines()
            table = [line for line in lines if line.strip().startswith(("all", "predicted"))]
            print(f"{name}: {wall:.0f} s by the clock, {busy:.0f} s of processors", *table, sep="\n")
    return {name: tuple(map(statistics.median, zip(*pairs))) for name, pairs in times.items()}


def show_ratio(work: str, times: dict[str, tuple[float, float]], ours: str, other: str) -> None:
    clock, busy = (mine / theirs for mine, theirs in zip(times[ours], times[other]))
    row(work, f"{clock:.2f}, {busy:.2f}", "of the time by the clock, of processors")


def bench_run(against: str = "HEAD", rounds: int = 5, *flags: str) -> None:
    """`python train.py` of this working tree and of a revision, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "project"
        subprocess.run(["git", "worktree", "add", "--detach", tree, against], cwd=ROOT, check=True,
                       capture_output=True)
        try:
            times = whole_runs({"here": (ROOT, ["train.py", *flags]), against: (tree, ["train.py", *flags])},
                               rounds)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    show_ratio(f"python train.py {' '.join(flags)}, against {against}", times, "here", against)


def bench_processes(against: str = "", rounds: int = 5, *flags: str) -> None:
    """The same by two processes, against one."""
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2".split()  # see findings/ for why
    times = whole_runs({"one": (ROOT, ["train.py", *flags]), "two": (ROOT, [*launch, "train.py", *flags])},
                       rounds)
    show_ratio("two processes, against one", times, "two", "one")


WHOLE = {"run": bench_run, "processes": bench_processes}  # minutes a round
PARTS = {"gnn": bench_gnn, "step": bench_step, "peak": bench_peak, "logits": bench_logits,
         "verifiers": bench_verifiers, "start": bench_start, "memory": bench_memory}

if __name__ == "__main__":
    if sys.argv[1:2] == ["_peak"]:
        peak(sys.argv[2])
    elif sys.argv[1:2] == ["_logits"]:
        logits(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["_large"]:
        large()
    elif sys.argv[1:2] == ["gpu"]:
        from bench_gpu import main

        sys.exit(main(sys.argv[2:]))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
        parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join([*PARTS, *WHOLE]))
        parser.add_argument("--against", default="HEAD", metavar="REV", help="run: the revision beside it")
        parser.add_argument("--rounds", type=int, default=5, help="run, processes: how often each")
        given, flags = parser.parse_known_args()
        if unknown := [name for name in given.parts if name not in (*PARTS, *WHOLE)]:
            sys.exit(f"bench.py: no part {unknown[0]!r}; there are {', '.join([*PARTS, *WHOLE, 'gpu'])}")
        for name in given.parts or PARTS:
            if name in WHOLE:
                WHOLE[name](given.against, given.rounds, *flags)
            else:
                PARTS[name]()
