"""`bench.py gpu` on a CPU, so that it does not break before a GPU is there, and the numbers it computes."""

import signal
import time
from types import SimpleNamespace

import bench_gpu
import pytest
import torch
from tiny import make_model
from torch.utils.flop_counter import FlopCounterMode

import grpo
import train


@pytest.fixture
def rows(monkeypatch):
    """What is printed: what was done, the result, more."""
    rows = []
    monkeypatch.setattr(
        bench_gpu, "row", lambda work, result, goal="": rows.append((work.strip(), result, goal)))
    return rows


def test_every_part_runs_and_passes_on_a_cpu(rows, monkeypatch, capsys):
    monkeypatch.setattr(bench_gpu, "launch", lambda given, seconds: train.main([str(x) for x in given]) or "")
    assert bench_gpu.main(["--tiny", "--steps", "1"]) == 0
    results = {work: result for work, result, _ in rows}
    assert capsys.readouterr().out.splitlines()[-1] == "0 FAILED, 0 left out"
    assert not {"FAIL", "left out"} & set(results.values())
    assert sum(result == "pass" for result in results.values()) == 10
    for count in (8, 16):
        assert results[f"sampling, {count} x (8 + 4) tokens"].endswith("tokens/s")
        assert results[f"update, {count} x (8 + 4) tokens"].endswith("tokens/s")
    assert "predicted rewards right" in results and "greedy accuracy out of domain" in results
    assert results["as fast as eager"].endswith(" x")
    assert sum("update" in goal and "sample" in goal for *_, goal in rows) == 2  # seconds of a run by stage


def test_what_is_wrong_fails(rows, monkeypatch):
    """A copy that nobody refreshes; sampled log-probabilities 0.002 nats off, in bf16 rounding; a crash."""
    bench, sample = bench_gpu.Bench(SimpleNamespace(model="builtin", tiny=True, seconds=600)), grpo.sample
    bench.load()
    monkeypatch.setattr(bench_gpu, "refresh", lambda run: None)
    bench.copied()

    def off(*given, **more):
        rollouts = sample(*given, **more)
        rollouts.logprobs += 0.002
        return rollouts

    monkeypatch.setattr(grpo, "sample", off)
    bench.mismatch()
    bench.part("a crash", lambda: 1 / 0)
    assert [(work, goal[:40]) for work, result, goal in rows if result == "FAIL"] == [
        ("bf16 copy is the trained weights rounded", "bit for bit; 0 of its weights moved"),
        ("sampler against trainer, fp32", "0.002 nats on average, 0.002 nats at mos"),
        ("a crash", "ZeroDivisionError: division by zero")]
    assert bench.failed == [work for work, result, _ in rows if result == "FAIL"]


def test_a_model_that_cannot_be_loaded_fails_in_a_line(rows, capsys):
    assert bench_gpu.main(["--tiny", "--model", "no-such-model"]) == 1
    (work, result, goal), = rows
    assert result == "FAIL" and goal.startswith("ValueError: model: cannot load 'no-such-model'")
    assert capsys.readouterr().out.splitlines()[-1] == f"1 FAILED, 0 left out; {work}"


def test_time_is_kept(rows):
    old = signal.signal(signal.SIGALRM, bench_gpu.too_late)
    bench = object.__new__(bench_gpu.Bench)
    bench.end, bench.missing = time.monotonic() + 60, 0
    bench.part("long", time.sleep, 30, seconds=1)
    bench.end = time.monotonic() - 1
    bench.part("none", time.sleep, 30)
    signal.signal(signal.SIGALRM, old)
    assert rows == [("long", "left out", "stopped, it took too long"),
                    ("none", "left out", "there was no time left")] and bench.missing == 2
    assert bench_gpu.launch(["--help"], 0.01) == bench_gpu.LATE
    assert bench_gpu.launch(["--label_ratio", 2], 60).startswith("error: label_ratio: 2.0 is outside")


@pytest.mark.parametrize("name, peak", [
    ("NVIDIA H100 80GB HBM3", (989e12, 3350e9)), ("NVIDIA H100 PCIe", (756e12, 2000e9)),
    ("NVIDIA A100-SXM4-80GB", (312e12, 2000e9)), ("NVIDIA A100-PCIE-40GB", (312e12, 1555e9)),
    ("NVIDIA L4", (121e12, 300e9)), ("NVIDIA L40S", (362e12, 864e9)), ("NVIDIA L40", None),
    ("NVIDIA GeForce RTX 4090", (165e12, 1008e9)), ("Tesla T4", (65e12, 320e9)), ("NVIDIA B300", None)])
def test_a_card_is_known_by_its_name(name, peak):
    assert bench_gpu.card(name) == peak


@pytest.mark.parametrize("tied", [True, False])
def test_work_is_what_torch_counts(tied):
    """torch counts products of matrices, here also those of a prompt's tokens with the head, and of tokens
    with later ones in the attention: these are taken off by hand. We count norms and biases, too."""
    model = make_model(attention="eager", tie_word_embeddings=tied, vocab_size=500)
    prompt, length = 9, 14
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(4, 500, (1, prompt + length)))
    future = (prompt + length)**2 - (prompt**2 / 2 + sum(prompt + t + 1 for t in range(length)))
    expected = counter.get_total_flops() - 2 * prompt * 16 * 500 - 2 * 2 * 2 * 16 * future  # 2 layers, 2 x 8
    work, read = bench_gpu.forward_work(model, 1, 1, prompt, length)
    vectors = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    assert work == pytest.approx(expected + 2 * vectors * (prompt + length))
    weights = 4 * (sum(weight.numel() for weight in model.parameters()) - (0 if tied else 16 * 500))
    cache = [2 * 2 * 8 * 4 * (prompt + t + 1) for t in range(length)]  # 2 x 2 layers x 8, fp32
    assert read == pytest.approx(sum(weights + size for size in cache))
    assert bench_gpu.forward_work(model, 2, 6, prompt, length)[0] == pytest.approx(
        2 * work + 4 * (work - bench_gpu.forward_work(model, 1, 0, prompt, length)[0]))


def test_shares_of_a_known_card(rows):
    """Rows of 8 + 4 tokens in 2 s, on a card of 1 GFLOP/s and 10 MB/s."""
    policy = make_model()
    bench = SimpleNamespace(shape=(8, 4), peak=(1e9, 1e7), config=SimpleNamespace(temperature=1.0),
                            clock=lambda function: (function() and 0) or (2.0, "peak 1.0 GiB"),
                            update=lambda *_: None, run=SimpleNamespace(policy=policy, tokenizer=None))
    bench.run.tokenizer = SimpleNamespace(eos_token_id=1, pad_token_id=0)
    bench_gpu.Bench.speed(bench, 8)
    work, read = bench_gpu.forward_work(policy, 1, 8, 8, 4)
    assert rows == [
        ("sampling, 8 x (8 + 4) tokens", "16 tokens/s",
         f"{100 * work / 2e9:.1f} % of FLOP/s, {100 * read / 2e7:.0f} % of bandwidth, peak 1.0 GiB"),
        ("update, 8 x (8 + 4) tokens", "16 tokens/s",
         f"{100 * 3 * work / 2e9:.1f} % of FLOP/s, peak 1.0 GiB")]
    assert policy.generation_config.eos_token_id == [1, 2]


def test_the_header_names_card_memory_and_driver(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda _: SimpleNamespace(name="NVIDIA B300", total_memory=2**35))
    monkeypatch.setattr(bench_gpu.shutil, "which", lambda name: "smi")
    monkeypatch.setattr(bench_gpu.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="580.1\n"))
    bench_gpu.Bench.header(SimpleNamespace(cuda=True, peak=None, args=SimpleNamespace(model="m")))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"NVIDIA B300, 32 GiB; torch {torch.__version__}, CUDA ")
    assert "driver 580.1; " in first
    assert second == "(an unknown card: shares of its peak are left out)"
