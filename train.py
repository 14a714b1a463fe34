"""The experiment: train a policy by GRPO, with rewards from a verifier if there are labels, else from memory.

    python train.py                              # the whole method on the built-in small world, two cores
    python train.py --mode r1p                   # the same steps on the labelled fifth only; oracle, majority
    python train.py compare --seeds 5            # the paper's table: four modes, five seeds
    python train.py --resume runs/NAME           # go on where a run stopped, or was killed
    python train.py evaluate runs/NAME           # test accuracy of a run, a checkpoint, or any causal LM
    python train.py pick --tasks mine.jsonl      # which labels to buy first
    python train.py probe                        # how good predicted rewards are, and what each part gives
    python train.py plot runs/compare            # figures of the table's runs
    python train.py explain runs/NAME            # why rollouts got their predicted rewards; map: all of them
    python train.py score runs/NAME mine.jsonl   # what a run's memory thinks of responses of your own
    python train.py --preset qwen2.5-1.5b        # the paper's models and benchmarks, one GPU
    accelerate launch --num_processes 8 train.py --preset qwen2.5-3b     # one node of 8 GPUs

A run folder holds config.json, tasks.json (the labelled ones marked), metrics.jsonl (a line a step and
evaluation), rollouts.jsonl (what the policy writes), checkpoints/STEP, results.json, policy/ (the result).

What needs torch is imported where it is used, so that --help and a refused setting answer at once.
"""

import os
import random
import sys
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from lab.compare import LABEL_RATIO, VARIANTS, compare, report
from lab.evaluate import evaluate, run_evaluate
from lab.explain import explain, score
from lab.figures import plot
from lab.label_pick import coverage_order, pick
from lab.log import Audit, Drift, Log, Stopwatch, profile
from lab.map import draw_map
from lab.probe import run_probe
from lab.processes import fit_memory, gather, join, refresh, share
from lab.runs import Run, finish, load_checkpoint, load_data, open_folder, save_checkpoint, start
from lab.samples import Samples
from lab.settings import PRESETS, check_values, due, new_folder, run_command, setting


@dataclass
class Config:
    """All settings of an experiment."""

    mode: Literal["memreward", "r1p", "oracle", "majority"] = setting(
        "memreward", "who rewards unlabelled rollouts: memreward (the memory), majority (the group's vote), "
        "nobody (r1p: train on the labelled tasks only), oracle (every task keeps its label)")
    label_ratio: float = setting(LABEL_RATIO, "share of the training tasks that keep their label; oracle: 1")
    label_pick: Literal["random", "coverage"] = setting(
        "random", "which tasks keep their label: drawn at random, or those whose queries together stand "
        "nearest to all (greedy facility location on the encoder's embeddings)")
    preset: Literal[tuple(PRESETS)] = setting("none", "settings of a known experiment, which flags change")
    tasks: str = setting("world", "'world' (built in), benchmarks by name, .jsonl files; with commas")
    ood: str = setting("", "more of these, on which the policy is tested and never trained (out of domain)")
    train_tasks: int = setting(600, "training tasks, at most, of each set, drawn by the seed (paper: 750)")
    test_tasks: int = setting(600, "test tasks, at most, of each set, the same for every seed (paper: 450); "
                              "unless given, a run below 50 steps takes 12 a step, 60 at least")
    model: str = setting("builtin", "the policy: 'builtin' (tiny, knows the small world), a causal LM by its "
                         "name or folder, or a run folder, whose trained policy is taken")
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = setting(
        "auto", "implementation that transformers uses")
    check_policy: bool = setting(True, "hold the model against itself before the first batch: seconds")
    stop: str = setting("", "text at which a response ends, for base models that write no end")
    encoder: str = setting(
        "auto", "what embeds queries, thinkings, answers: 'hash' (n-grams; auto with the built-in policy), "
        "'policy' (hidden states of the frozen reference; auto with any other model), or an encoder of "
        "transformers by its name or folder")
    system: str = setting("", "text of a system message in front of every task")
    chat_template_kwargs: str = setting("{}", "JSON for the template: {\"enable_thinking\": false}")
    plugin: str | None = setting(None, "a Python file that is run first: your own kinds of tasks")
    seed: int = setting(0, "decides training tasks, labels, batches, sampling and the reward network")
    # GRPO
    steps: int = setting(200, "training steps")
    batch_size: int = setting(16, "tasks per step, over all processes")
    group_size: int = setting(8, "rollouts per task")
    temperature: float = setting(1.0, "of sampling, and of the policy that is trained")
    max_prompt_length: int = setting(1024, "tokens; tasks with longer prompts are left out and counted")
    max_response_length: int = setting(48, "tokens; a rollout ends there (the paper: 1024)")
    learning_rate: float = setting(2e-4, "of AdamW, constant (the paper, for real models: 1e-6)")
    lr_warmup: int = setting(0, "steps in which the learning rate rises to it")
    updates_per_batch: int = setting(1, "optimizer steps on one batch; with 1 the clip never acts")
    sample_batch_size: int = setting(256, "rollouts decoded at a time, per process: as their cache fits")
    micro_batch_size: int = setting(32, "different rollouts per forward pass of the update, per process")
    clip_low: float = setting(0.2, "the ratio is clipped below 1 - clip_low")
    clip_high: float = setting(0.2, "the ratio is clipped above 1 + clip_high (DAPO: 0.28)")
    kl_coef: float = setting(0.001, "weight of the KL divergence to the frozen reference in the loss")
    advantage_norm: Literal["std", "none"] = setting(
        "std", "divide advantages by the group's deviation (Dr. GRPO: none)")
    loss_norm: Literal["sequence", "token", "constant"] = setting(
        "sequence", "average over rollouts of averages over tokens (GRPO), over all tokens (DAPO), or sum "
        "divided by the longest possible length (Dr. GRPO)")
    gradient_checkpointing: bool = setting(False, "activations are computed twice: less memory")
    mask_truncated: bool = setting(False, "a rollout that was cut off gets advantage 0 (DAPO)")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "auto: bf16 where the device has it")
    # the memory
    neighbors: int = setting(3, "k: memory queries, and memory rollouts, that a new one listens to (paper: "
                             "7, for more labelled queries of a kind than the small world has)")
    threshold: float = setting(0.5, "a predicted probability above it is a reward of 1")
    reward: Literal["hard", "soft"] = setting(
        "hard", "predicted rewards are 0 or 1 by the threshold (the paper), or the probability itself: then "
        "advantages are means over what the rewards may be")
    abstain: float = setting(0.0, "groups whose mean |2p - 1| of predictions p is below it teach nothing")
    drift_fraction: float = setting(
        0.1, "share of the labelled queries that the reward networks never train, stop or calibrate on, so "
        "that the log can tell how well they do while the policy drifts")
    memory: Literal["frozen", "grow", "refit"] = setting(
        "frozen", "after the warm-up: frozen, as in the paper; grow, verified rollouts of labelled tasks "
        "join it; refit, and its networks are fitted anew every --refit_every steps")
    refit_every: int = setting(50, "steps between new fits of the networks, with --memory refit")
    groups_per_query: int = setting(
        2, "groups of rollouts of a labelled query that the warm-up samples, and newest ones that stay: in "
        "training a group hears the others of its query, its siblings")
    features: str = setting(
        "auto", "what the networks are told of an answer, out of magnitude, parsed, majority (the paper's), "
        "agreement, overlap, coverage, sound, mean_logprob, min_logprob; auto: parsed and the "
        "log-probabilities with the built-in policy, else all but magnitude and majority")
    gnn: Literal["mixed", "gcn", "mlp", "paper"] = setting(
        "mixed", "kind of reward networks: gcn (features and known rewards travel, embeddings make the "
        "edges), mlp (embeddings, no edges), mixed (these two take turns), paper (its GCN: embeddings are "
        "inputs, known rewards are not)")
    gnn_networks: int = setting(5, "networks, whose logits are averaged, each stopped on other labels")
    gnn_hidden: int = setting(64, "width of the reward network (the paper: 512)")
    gnn_layers: int = setting(2, "layers of the reward network")
    gnn_dropout: float = setting(0.1, "dropout of the reward network")
    gnn_learning_rate: float = setting(1e-3, "of AdamW for the reward network")
    gnn_weight_decay: float = setting(1e-2, "of AdamW for the reward network")
    gnn_epochs: int = setting(150, "at most so many epochs, stopped early on a fifth of the labelled queries")
    gnn_patience: int = setting(20, "epochs without improvement before stopping")
    # running
    eval_every: int = setting(100, "steps between evaluations; 0: test accuracy is never measured")
    checkpoint_every: int = setting(0, "steps between checkpoints; 0: as often as evaluations")
    save_rollouts: int = setting(0, "steps between lines of rollouts.jsonl beside those of evaluations")
    show: int = setting(1, "groups of rollouts that are printed at an evaluation")
    eval_samples: int = setting(2, "responses per test task at temperature 1, beside the greedy one")
    keep: int = setting(2, "newest checkpoints that stay; with 2 or more a damaged one has another behind it")
    output_dir: str | None = setting(None, "run folder; by default a new one under runs/")
    resume: str | None = setting(None, "run folder to go on with; its config.json has the settings")
    seeds: int = setting(1, "compare: seeds of every mode, --seed is the first; probe: splits (5 or more)")
    variants: str = setting("", f"compare: further rows, out of {', '.join(VARIANTS)}; with commas, or 'all'")
    rollouts: str | None = setting(
        None, "probe: a run folder, or a .jsonl file of tasks with rollouts and their rewards; score: one of "
        "tasks with responses")
    new_kinds: bool = setting(False, "probe: keep whole kinds of tasks out of the fit")
    figure: bool = setting(False, "explain: also draw what a rollout listens to")
    watch: int = setting(0, "plot: seconds until the page of a run that trains is drawn again; 0: once")
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = setting("none", "also log there")
    profile: bool = setting(False, "write trace.json of torch's profiler, steps 3 to 5 (chrome://tracing)")
    traceback: bool = setting(False, "show where in the code an error arose, not just its message")

    def __post_init__(self):
        if self.mode == "oracle":
            self.label_ratio = 1.0
        self.features = self.features.replace(" ", "")
        if self.features == "auto":  # the others drift on the small world
            small = self.model == "builtin" and not self.rollouts
            more = "" if small else "agreement,overlap,coverage,sound,"
            self.features = f"parsed,{more}mean_logprob,min_logprob"
        if self.encoder == "auto":
            self.encoder = "hash" if self.model == "builtin" else "policy"
        check_values(self)


# ----------------------------------------------------------------------------------------------- the training


def train(config: Config, before: dict | None = None) -> dict:
    """One run, from the policy that `config.model` names to a trained one in the run folder; gives
    results.json. `before`: the first evaluation, where another run has made it (see `compare`)."""
    from tqdm import tqdm

    from data import spend_labels

    config.output_dir = config.resume or config.output_dir or new_folder(config.mode)
    run = start(config)
    everything, test = load_data(run)
    order = coverage_order(run, everything) if config.label_pick == "coverage" else None
    tasks, labels_kept = spend_labels(everything, config.label_ratio, config.seed, order, run.partly)
    audit = Audit(everything, config)
    del everything  # from here on a hidden label exists in the audit only
    labelled = [task for task in tasks if task.labelled]
    open_folder(run, tasks, test)
    available = sum(task.labelled for task in audit.truth.values())
    log = Log(run, {"labels_used": len(labelled), "labels_available": available})
    log.begin(tasks, test, labels_kept)
    if config.mode == "r1p":
        tasks = labelled
    drift, samples = Drift(labelled, config), Samples(run, tasks, audit, roll_out)
    bar = tqdm(total=config.steps, desc=config.mode, disable=not run.accelerator.is_main_process)

    done = load_checkpoint(run, log, audit, drift) if config.resume else None
    if done is None:
        if run.memory is not None:
            warm_up(run, labelled, log, drift)
        look(run, test, 0, log, audit, drift, samples, before)
        save_checkpoint(run, 0, log, audit, drift)
    bar.update(done or 0)
    if not done:
        run.optimizer.state.clear()  # saving a sharded one makes a step of zeros, which Adam would count

    profiler = profile(run) if config.profile else None
    for step in range((done or 0) + 1, config.steps + 1):
        train_step(run, batch(tasks, step - 1, config), step, log, audit, drift)
        if profiler:
            profiler.step()
        bar.update()
        bar.set_postfix(log.shown, refresh=False)
        if due(step, config.eval_every) or step == config.steps:
            look(run, test, step, log, audit, drift, samples)
        elif due(step, config.save_rollouts):
            samples.write(step)
        if due(step, config.checkpoint_every or config.eval_every) or step == config.steps:
            save_checkpoint(run, step, log, audit, drift)
    bar.close()
    log.end()
    return finish(run, log, audit)


def look(run: Run, test: list, step: int, log: Log, audit: Audit, drift: Drift, samples: Samples,
         known: dict | None = None) -> None:
    """What the policy can do (where it is not `known`), what predictions were worth since the last look, what
    the policy writes."""
    accuracy = known or (evaluate(run, test) if run.config.eval_every else {})
    log.evaluation(step, accuracy, audit.metrics(log.audited), drift.metrics(log.checked))
    drift.warn(run, step, log.checked)
    log.mark(audit, drift)
    samples.write(step, run.config.show)


def warm_up(run: Run, labelled: list, log: Log, drift: Drift) -> None:
    """Step 1: the initial policy's verified rollouts of the labelled tasks are the memory; fit it."""
    from tqdm import tqdm

    from memreward import acquire_rewards

    visits = [(task, f"{task.id} sibling {n}" if n else task.id)
              for n in range(run.config.groups_per_query) for task in labelled]
    mine, seen, cut = share(run, visits), [], []
    size = run.config.batch_size // run.accelerator.num_processes
    bar = tqdm(range(0, len(mine), size), "warm-up", leave=False, delay=10,
               disable=not run.accelerator.is_main_process)
    for first in bar:
        tasks, names = zip(*mine[first : first + size])
        experience = roll_out(run, tasks, names, 0, Stopwatch())
        rewards, _ = acquire_rewards(
            tasks, experience.rollouts.texts, run.memory, experience.groups, experience.keys)
        cut += experience.rollouts.truncated.float().tolist()
        experience.rollouts = experience.ref_logprobs = None  # all stay a while, but without their tokens
        seen.append((experience, rewards))
    join(run, [row for pair in seen for row in remember(run, *pair)])
    histories = fit_memory(run, run.config.seed, drift)
    drift.extend(gather(run, [row for pair in seen for row in drift.check(run, *pair)]))
    drift.warm_up = len(drift.rewards)
    groups = gather(run, [group for _, rewards in seen for group in rewards.tolist()])
    log.warm_up(histories, groups, mean(gather(run, cut)))


def train_step(run: Run, visits: list[tuple], step: int, log: Log, audit: Audit, drift: Drift) -> None:
    """Steps 2 to 6: rollouts, rewards, one GRPO update, what the predictions were worth, fresh experience."""
    from grpo import expected_advantages, group_advantages, policy_update
    from memreward import acquire_rewards

    config, lap, audited, checked = run.config, Stopwatch(), len(audit.rewards), len(drift.rewards)
    # 2. Sample a group of rollouts for each task; every process takes its share of the batch.
    tasks, names = zip(*share(run, visits))
    experience = roll_out(run, tasks, names, step, lap)
    # 3. Rewards: the verifier where there is a label, else the memory (or the majority).
    rewards, source = acquire_rewards(
        tasks, experience.rollouts.texts, run.memory, experience.groups, experience.keys, config.threshold,
        config.reward == "soft", config.abstain, lap)  # (B, G), (B,)
    # 4. Advantages and one GRPO update.
    advantages_of = expected_advantages if config.reward == "soft" else group_advantages
    advantages = advantages_of(rewards, config.advantage_norm)  # (B, G)
    if config.mask_truncated:  # what was cut off is neither right nor wrong (DAPO)
        advantages = advantages * ~experience.rollouts.truncated.view_as(advantages).to(advantages.device)
    audit.begin(experience)  # verified meanwhile
    for group in run.optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, step / max(1, config.lr_warmup))
    stats = policy_update(
        run.model, run.optimizer, run.accelerator, experience.rollouts,
        advantages.flatten().to(run.device), experience.ref_logprobs if config.kl_coef > 0 else None,
        temperature=config.temperature, clip_low=config.clip_low, clip_high=config.clip_high,
        kl_coef=config.kl_coef, loss_norm=config.loss_norm, updates_per_batch=config.updates_per_batch,
        micro_batch_size=config.micro_batch_size, max_grad_norm=config.max_grad_norm)
    refresh(run)
    lap("update")
    # 5. What the predicted rewards were worth, for the log alone.
    drift.extend(gather(run, drift.check(run, experience, rewards)))
    audit.add(run, experience)
    lap("audit")
    # 6. If wanted, fresh verified rollouts join the memory (no new label is used) and it is fitted anew.
    if run.memory is not None and config.memory != "frozen":
        join(run, remember(run, experience, rewards))
        if config.memory == "refit" and step % config.refit_every == 0:
            log.fits(step, fit_memory(run, config.seed + step, drift))
        lap("remember")
    log.step(step, experience, rewards, source, stats, lap, audit.metrics(audited), drift.metrics(checked))


def batch(tasks: list, step: int, config: Config) -> list[tuple]:
    """The tasks of a step, each with a key that names this visit: every epoch is a new permutation, batches
    are full."""
    chosen, orders = [], {}
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, len(tasks))
        if epoch not in orders:
            order = random.Random(f"epoch {config.seed} {epoch}")
            orders[epoch] = order.sample(range(len(tasks)), len(tasks))
        task = tasks[orders[epoch][place]]
        chosen.append((task, f"{task.id} {epoch}"))
    return chosen


@dataclass
class Experience:
    """B tasks with their B*G rollouts, as the rewards and the update see them."""

    tasks: list
    rollouts: object  # grpo.Rollouts
    keys: list[list[str | None]]  # answer keys, B lists of G
    groups: object = None  # gnn.Groups: nodes of the memory's graph
    ref_logprobs: object = None  # (N, T)


def roll_out(run: Run, tasks: list, names: list[str], step: int, lap: Stopwatch) -> Experience:
    """Sample G rollouts of each task, with noise by the `names` of these visits; score them under the
    reference, and embed and describe them where a memory needs it."""
    import torch

    from data import answer_key
    from gnn import Groups
    from grpo import forward_responses, sample, uniform_noise
    from memreward import answer_features

    config, size, length = run.config, run.config.group_size, run.config.max_response_length
    noise = uniform_noise(config.seed, step, names, size, length)
    prompts = [run.render(task) for task in tasks]
    rollouts = sample(run.policy, run.tokenizer, prompts, size, length, config.temperature, noise,
                      config.sample_batch_size, run.stop)
    texts = [rollouts.texts[i : i + size] for i in range(0, len(rollouts.texts), size)]
    keys = [[answer_key(task, text) for text in group] for task, group in zip(tasks, texts)]
    experience = Experience(tasks, rollouts, keys)
    lap("sample")

    def score(temperature: float, hidden: bool = False):
        with torch.no_grad():
            return forward_responses(run.reference, rollouts.ids, rollouts.attention_mask, length,
                                     temperature, hidden, config.micro_batch_size)

    if run.memory is not None:  # confidence is the reference's at temperature 1, whatever samples
        reference = score(1.0, hidden=config.encoder == "policy")
    if config.kl_coef > 0:
        same = run.memory is not None and config.temperature == 1
        experience.ref_logprobs = (reference if same else score(config.temperature)).logprobs
    lap("reference")
    if run.memory is not None:
        nodes = run.encode(tasks, rollouts, reference.hidden)
        features = answer_features(tasks, texts, keys, reference.logprobs, rollouts.mask,
                                   config.features.split(","))
        experience.groups = Groups(*(node.to(features) for node in nodes), features)
        lap("embed")
    return experience


def remember(run: Run, experience: Experience, rewards) -> list[tuple]:
    """The labelled groups as rows for `ExperienceMemory.remember`, on the CPU."""
    parts = zip(experience.tasks, *(part.cpu() for part in (*experience.groups, rewards)))
    return [(task.id, *(x.clone() for x in tensors)) if task.labelled else None  # views send all they are of
            for task, *tensors in parts]


# ------------------------------------------------------------------------------------------- the command line


def run_train(config: Config) -> None:
    """`python train.py`: one run and its table."""
    results = train(config)
    if os.environ.get("RANK", "0") == "0":
        print("\n" + report(results))


COMMANDS = {  # what each does, and the function that does it
    "train": ("train a policy, with rewards from a verifier where there are labels, else from memory",
              run_train),
    "compare": ("the paper's table: four modes, several seeds", lambda config: compare(config, train)),
    "evaluate": ("test accuracy of a run, a checkpoint or any causal LM", run_evaluate),
    "pick": ("which labels to buy first", pick),
    "probe": ("how good predicted rewards are, what each part of the memory gives", run_probe),
    "explain": ("why rollouts got their predicted rewards", lambda config: explain(config, roll_out)),
    "map": ("a picture of all that a memory knows and is asked", lambda config: draw_map(config, roll_out)),
    "score": ("a run's memory judges responses of your own", score),
    "plot": ("one page of a run, or figures of the runs of compare", plot),
}


def main(arguments: list[str]) -> None:
    """The command line; an error is one line."""
    run_command(arguments, Config, COMMANDS)


if __name__ == "__main__":
    main(sys.argv[1:])
