"""The GPU in one command, for whenever one is there: speed, equalities that only a GPU can test, two runs.

    python tests/bench.py gpu                               # SmolLM2-135M-Instruct, at most 8 minutes
    python tests/bench.py gpu --model FOLDER --steps 100    # another model, longer runs
    python tests/bench.py gpu --tiny                        # every part on a CPU: would it run?

docs/speed.md says what the lines mean. What fails is one line, and the rest goes on; the exit status is 1
where anything FAILs. What there is no time or memory for says so.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from bench import ROOT, G, even_share, installed, row, trl_trainer

import data
import grpo
import train
from lab.log import Stopwatch
from lab.processes import refresh
from lab.runs import load_policy, start, version
from support.packing import can_share, forward_responses
from support.selfcheck import Ids
from support.traits import replaced_forward, some_tokens, text_config

CARDS = {  # words of its name: dense bf16 TFLOP/s with fp32 sums, GB/s of memory (T4: fp16, it has no bf16)
    "H200": (989, 4800), "H100 PCIe": (756, 2000), "H100 NVL": (835, 3900), "H100": (989, 3350),
    "A100 80GB": (312, 2000), "A100": (312, 1555), "L40S": (362, 864), "L4": (121, 300),
    "4090": (165, 1008), "3090": (71, 936), "T4": (65, 320)}
ROUNDS, LATE = 3, "stopped, there was no time left"


def card(name: str) -> tuple[float, float] | None:
    """FLOP/s and bytes/s of a card at best, None of an unknown one."""
    words = set(re.split(r"[\s-]+", name))
    found = next((peak for key, peak in CARDS.items() if words.issuperset(key.split())), None)
    return found and (1e12 * found[0], 1e9 * found[1])


def forward_work(model, prompts: int, rows: int, prompt: int, length: int) -> tuple[float, float]:
    """FLOPs of a forward pass over `prompts` prompts, each once, and `rows` responses to them, the head on
    responses only; and bytes that decoding these must read, a token a step: weights, and the cache so far."""
    config, size = text_config(model), sum(weight.numel() for weight in model.parameters())
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    inner, head = size - sum({id(x): x.numel() for x in tables}.values()), tables[1].numel()  # may be tied
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    narrow = width * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    pairs = rows * length * (prompt + (length + 1) / 2)  # of a response's token and one that it attends to
    products = inner * (prompts * prompt + rows * length) + head * rows * length + (
        2 * config.num_hidden_layers * config.num_attention_heads * width * (prompts * prompt**2 / 2 + pairs))
    read = length * (inner + head) + 2 * config.num_hidden_layers * narrow * pairs
    return 2 * products, read * model.dtype.itemsize


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def launch(arguments: list, seconds: float) -> str:
    """`python train.py`, at most so long: the last line of a run that did not end well, else nothing."""
    try:
        done = subprocess.run([sys.executable, ROOT / "train.py", *map(str, arguments)], timeout=seconds,
                              capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return LATE
    return (done.stderr.strip().splitlines() or ["?"])[-1] if done.returncode else ""


class Bench:
    """All parts, one after the other."""

    def __init__(self, args):
        self.args, self.end, self.failed = args, time.monotonic() + args.seconds, []
        self.missing, self.run, self.plain = 0, None, None
        self.cuda, self.folder = torch.cuda.is_available(), Path(tempfile.mkdtemp())
        self.peak = card(torch.cuda.get_device_name()) if self.cuda else None
        self.shape, length = ((64, 128), 64) if not args.tiny else ((8, 4), 6)
        make = [sys.executable, ROOT / "assets" / "make_short.py", self.folder]
        subprocess.run(make, check=True, capture_output=True)
        self.tasks, self.ood = (self.folder / f"short_{name}.jsonl" for name in ("train", "ood_test"))
        self.config = train.Config(
            mode="oracle", model=args.model, precision="bf16", learning_rate=1e-5, tasks=str(self.tasks),
            batch_size=4 if args.tiny else 16, group_size=G, max_response_length=length, temperature=0.7)

    def part(self, name: str, function, *given, seconds: float = math.inf) -> None:
        """Run a part, at most so long; whatever goes wrong is a line."""
        seconds = min(seconds, self.end - time.monotonic())
        if seconds < 1:
            return self.skip(name, "there was no time left")
        gc.collect()
        torch.cuda.empty_cache()  # of what the part before had
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            function(*given)
        except TimeoutError:
            self.skip(name, "stopped, it took too long")
        except torch.OutOfMemoryError:
            self.skip(name, "out of memory")
        except Exception as error:
            traceback.print_exc()
            self.check(name, False, one_line(error))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def skip(self, name: str, why: str) -> None:
        row(name, "left out", why)
        self.missing += 1

    def check(self, name: str, passed: bool, what: str = "") -> None:
        row(name, "pass" if passed else "FAIL", what)
        self.failed += [name] * (not passed)

    def clock(self, function) -> tuple[float, str]:
        """Median seconds, and the peak of memory in words; the first call warms up."""
        times = []
        for number in range(ROUNDS + 1):
            if self.cuda and number == 1:
                torch.cuda.reset_peak_memory_stats()
            lap = Stopwatch()  # it waits for the GPU
            function()
            lap("all")
            times.append(lap["seconds/all"])
        peak = f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if self.cuda else ""
        return statistics.median(times[1:]), peak

    def header(self) -> None:
        name, driver, smi = "cpu", "-", shutil.which("nvidia-smi")
        if self.cuda:
            gpu = torch.cuda.get_device_properties(0)
            name = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
            ask = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = smi and subprocess.run(ask, capture_output=True, text=True).stdout.split("\n")[0]
        print(f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, driver {driver}; "
              f"method {version()}; {self.args.model}")
        if self.cuda and not self.peak:
            print("(an unknown card: shares of its peak are left out)")

    def load(self) -> None:
        """The models as a run holds them, and one in fp32 without autocast."""
        self.run = start(self.config)
        self.plain = load_policy(self.config, torch.float32)[0].to(self.run.device).eval()
        self.some = data.load_tasks(self.config.tasks, "train", self.config.batch_size)
        self.prompts = [self.run.render(task) for task in self.some]
        self.check("the policy agrees with itself (check_policy)", True)  # or start had raised

    def roll_out(self) -> tuple:
        """Rollouts of the tasks and the reference's log-probabilities, as train.train_step gets them."""
        found = train.roll_out(self.run, self.some, [task.id for task in self.some], 0, Stopwatch())
        return found.rollouts, found.ref_logprobs

    def update(self, rollouts, advantages, reference) -> None:
        """As train.train_step does it."""
        run, config = self.run, self.config
        grpo.policy_update(run.model, run.optimizer, run.accelerator, rollouts, advantages, reference,
                           temperature=config.temperature, micro_batch_size=config.micro_batch_size)
        refresh(run)

    def speed(self, rows: int) -> None:
        """Sampling and update of so many rows of one length."""
        (prompt, length), policy, drawn = self.shape, self.run.policy, []
        names = [str(number) for number in range(rows // G)]
        words = Ids(some_tokens(policy, len(names), prompt).tolist(), self.run.tokenizer)
        words.eos_token_id = text_config(policy).vocab_size  # no token: no row ends early
        ends, policy.generation_config.eos_token_id = policy.generation_config.eos_token_id, None
        try:
            seconds, peak = self.clock(lambda: drawn.append(
                grpo.sample(policy, words, names, G, length, self.config.temperature, batch_size=rows)))
        finally:
            policy.generation_config.eos_token_id = ends
        advantages = torch.linspace(-1, 1, rows)
        updating, peak_too = self.clock(lambda: self.update(drawn[-1], advantages, drawn[-1].logprobs))
        work, read = forward_work(policy, len(names), rows, prompt, length)
        for name, took, memory, passes in (("sampling", seconds, peak, 1), ("update", updating, peak_too, 3)):
            shares = [f"{100 * passes * work / took / self.peak[0]:.1f} % of FLOP/s"] if self.peak else []
            if self.peak and name == "sampling":
                shares.append(f"{100 * read / took / self.peak[1]:.0f} % of bandwidth")
            row(f"{name}, {rows} x ({prompt} + {length}) tokens", f"{rows * length / took:,.0f} tokens/s",
                ", ".join([*shares, memory]))

    def copied(self) -> None:
        """The copy that samples against the trained weights, after an update that moves both."""
        run, before = self.run, [weight.detach().clone() for weight in self.run.sampler.parameters()]
        rollouts, reference = self.roll_out()
        self.update(rollouts, torch.linspace(-1, 1, len(rollouts.ids)), reference)
        pairs = zip(run.sampler.parameters(), run.model.parameters(), strict=True)
        equal = all(torch.equal(copy, weight.detach().to(torch.bfloat16)) for copy, weight in pairs)
        moved = sum(int((new != old).sum()) for new, old in zip(run.sampler.parameters(), before))
        self.check("bf16 copy is the trained weights rounded", equal and moved > 0,
                   f"bit for bit; {moved:,} of its weights moved")

    def scores(self, model, rows: int | None = None, **how) -> torch.Tensor:
        """Log-probabilities of the rollouts, or of the first so many."""
        drawn = self.rollouts
        return forward_responses(model.train(), drawn.ids[:rows], drawn.attention_mask[:rows],
                                 drawn.mask.shape[1], self.config.temperature, **how).logprobs

    def near(self, name: str, mine, theirs, mean: float = math.inf, most: float = math.inf) -> None:
        """Check that log-probabilities lie no further apart than `mean` on average and `most` anywhere."""
        apart = (mine - theirs)[self.rollouts.mask[: len(mine)].bool()].abs()
        found = [apart.mean().item(), apart.max().item()]
        words = [f"{x:.2g} nats {what}" + (f" (to {limit:g})" if math.isfinite(limit) else "")
                 for x, what, limit in zip(found, ("on average", "at most"), (mean, most))]
        self.check(name, found[0] <= mean and found[1] <= most, ", ".join(words))

    def mismatch(self) -> None:
        """Log-probabilities of sampled tokens: as sampled, and as the update scores them."""
        noise = grpo.uniform_noise(0, 0, self.prompts, G, self.config.max_response_length)
        for name, sampler, trained, limit in (("bf16", self.run.policy, self.run.model, {"mean": 0.2}),
                                              ("fp32", self.plain, self.plain, {"most": 1e-3})):
            self.rollouts = grpo.sample(sampler, self.run.tokenizer, self.prompts, G, noise.shape[1],
                                        self.config.temperature, noise)
            with torch.no_grad():
                scores = self.scores(trained, batch_size=self.config.micro_batch_size)
            self.near(f"sampler against trainer, {name}", self.rollouts.logprobs, scores, **limit)

    def packing(self) -> None:
        """All rollouts in one row, each prompt once, against rows of their own with padding."""
        name, gradients = "one row against padded rows", []
        if not can_share(self.plain):
            return self.skip(name, "this model has rows of its own anyway")
        for kind, model, limit in (("fp32", self.plain, {"most": 1e-3}),
                                   ("bf16", self.run.model, {"mean": 0.2})):
            with torch.no_grad():
                both = [self.scores(model, 2 * G, share_prompts=share) for share in (True, False)]
            self.near(f"{name}, {kind}", *both, **limit)
        for share in (True, False):
            logprobs = self.scores(self.plain, 2 * G, share_prompts=share)
            weights = torch.linspace(-1, 1, logprobs.numel(), device=logprobs.device).view_as(logprobs)
            gradients.append(torch.autograd.grad((logprobs * weights).sum(), list(self.plain.parameters())))
        differences = [a - b for a, b in zip(*gradients, strict=True)]
        apart, norm = (math.hypot(*(x.norm().item() for x in xs)) for xs in (differences, gradients[1]))
        self.check("  gradients in fp32", apart <= 1e-3 * norm,
                   f"apart by {apart / norm:.2g} of their norm (to 0.001)")

    def compiled(self) -> None:
        """torch.compile of the model's forward on one row against eager, without gradients."""
        name, found = "torch.compile of the forward pass, fp32", []

        def score() -> None:
            with torch.no_grad():
                found.append(self.scores(self.plain, 2 * G))

        compiled = torch.compile(self.plain.forward, backend="eager" if self.args.tiny else "inductor")
        seconds, _ = self.clock(score)
        expected = found[-1]
        try:
            with replaced_forward(self.plain, compiled):
                fast, _ = self.clock(score)
        except TimeoutError:
            raise
        except Exception as error:
            return self.skip(name, f"does not compile: {one_line(error)}")
        self.near(name, found[-1], expected, most=1e-3)
        row("  as fast as eager", f"{seconds / fast:.2f} x")

    def against_trl(self) -> None:
        """A step of TRL and ours: the same model, prompts, rewards and sizes."""
        if not installed("trl"):
            return
        from transformers import TrainerCallback

        class Clock(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                laps.append(Stopwatch())

            def on_step_end(self, *args, **kwargs):
                laps[-1]("all")

        config, laps, rows = self.config, [], len(self.prompts) * G
        passes = rows // config.micro_batch_size
        trainer = trl_trainer(
            ROUNDS + 1, [Clock], load_policy(config, torch.float32)[0], self.run.tokenizer, self.prompts,
            use_cpu=not self.cuda, bf16=True, temperature=config.temperature, steps_per_generation=passes,
            gradient_accumulation_steps=passes, per_device_train_batch_size=config.micro_batch_size,
            max_completion_length=config.max_response_length)
        with contextlib.redirect_stdout(sys.stderr):  # its own table
            trainer.train()
        theirs = statistics.median(lap["seconds/all"] for lap in laps[1:])

        def step() -> None:
            rollouts, reference = self.roll_out()
            responses = rollouts.ids[:, -rollouts.mask.shape[1] :].tolist()
            counts = rollouts.mask.sum(1).long().tolist()
            rewards = torch.tensor([even_share(ids[:n]) for ids, n in zip(responses, counts)]).view(-1, G)
            self.update(rollouts, grpo.group_advantages(rewards).flatten(), reference)

        ours, _ = self.clock(step)
        row(f"one GRPO step, {rows} rollouts of {config.max_response_length} tokens at most",
            f"{theirs / ours:.2f} x as fast", f"as TRL's: {ours:.2f} against {theirs:.2f} s")

    def short_run(self, share: float, mode: str, *more) -> None:
        """A run of train.py on short tasks, in its own process, for a share of the time that is left."""
        folder, steps = self.folder / mode, self.args.steps
        given = ["--preset", "smollm2-short", "--model", self.args.model, "--mode", mode, "--steps", steps,
                 "--tasks", self.tasks, "--ood", self.ood, "--output_dir", folder, "--precision", "bf16",
                 "--eval_every", math.ceil(steps / 2), "--checkpoint_every", 10**6, "--keep", 1,
                 "--micro_batch_size", 48, "--sample_batch_size", 256, *more]  # as much as there is at a time
        if self.args.tiny:
            given += ["--train_tasks", 24, "--test_tasks", 6, "--max_response_length", 6, "--batch_size", 2]
        trouble = launch(given, share * (self.end - time.monotonic() - 5))
        file = folder / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        shutil.rmtree(folder, ignore_errors=True)
        if trouble == LATE:
            self.skip(f"a run of {mode}", LATE)
        else:
            self.check(f"a run of {mode}", not trouble, trouble)
        tests, trained = ([line for line in lines if key in line] for key in ("test/greedy/all", "loss"))
        for name, key in (("in domain", "all"), ("out of domain", "out of domain")) if tests else ():
            before, after = (test[f"test/greedy/{key}"] for test in (tests[0], tests[-1]))
            row(f"  greedy accuracy {name}", f"{before:.3f} to {after:.3f}", f"step {tests[-1]['step']}")
        right = [line["audit/accuracy"] for line in trained if line.get("audit/accuracy") is not None]
        if right:
            row("  predicted rewards right", f"{statistics.mean(right):.3f}")
        if trained:
            stages = [(name[8:], statistics.median(line[name] for line in trained))
                      for name in trained[0] if name.startswith("seconds/")]
            row(f"  a step, median of {len(trained)}", f"{sum(took for _, took in stages):.2f} s",
                ", ".join(f"{name} {took:.2f}" for name, took in stages))


def too_late(*_) -> None:
    raise TimeoutError


def main(arguments: list[str]) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser("python tests/bench.py gpu")
    parser.add_argument("--model", help="name or folder (default SmolLM2-135M-Instruct)")
    parser.add_argument("--encoder", default="policy", help="of the run with a memory: name, folder")
    parser.add_argument("--steps", type=int, help="of the two runs (default 60)")
    parser.add_argument("--seconds", type=float, default=470, help="all of it ends within so many")
    parser.add_argument("--tiny", action="store_true", help="the built-in policy, smallest sizes, any device")
    args = parser.parse_args(arguments)
    args.model = args.model or ("builtin" if args.tiny else "HuggingFaceTB/SmolLM2-135M-Instruct")
    args.steps = args.steps or (2 if args.tiny else 60)
    if not args.tiny:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one of them
        if not torch.cuda.is_available():
            sys.exit("bench.py gpu: there is no GPU here; --tiny tries every part on a CPU")
    previous, bench = signal.signal(signal.SIGALRM, too_late), Bench(args)
    bench.header()
    bench.part("the policy agrees with itself (check_policy)", bench.load)
    if bench.plain is not None:
        for rows in (8, 16) if args.tiny else (64, 256):
            bench.part(f"sampling and update, {rows} rows", bench.speed, rows)
        bench.part("bf16 copy is the trained weights rounded", bench.copied)
        bench.part("sampler against trainer", bench.mismatch)
        bench.part("one row against padded rows", bench.packing)
        bench.part("one GRPO step against TRL's", bench.against_trl, seconds=75)
        bench.run = None  # the runs want its memory
        bench.part("a run of oracle", bench.short_run, 0.5, "oracle")
        memory = ["--label_ratio", 0.2, "--encoder", args.encoder, *(["--gnn_epochs", 2] * args.tiny)]
        bench.part("a run of memreward", bench.short_run, 1.0, "memreward", *memory)
        bench.part("torch.compile of the forward pass", bench.compiled)
    signal.signal(signal.SIGALRM, previous)
    shutil.rmtree(bench.folder, ignore_errors=True)
    print("; ".join([f"{len(bench.failed)} FAILED, {bench.missing} left out", *bench.failed]))
    return int(bool(bench.failed))
