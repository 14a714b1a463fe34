"""`bench.py gpu` on a CPU, so that it does not break before a GPU is there, and the numbers it computes."""

import bench_gpu
import pytest
import torch
from tiny import make_model
from torch.utils.flop_counter import FlopCounterMode

import train


@pytest.fixture(scope="module")
def table():
    """What `--tiny` prints, and its exit status; the two runs happen in this process."""
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_gpu, "row", lambda work, result, goal="": printed.append((work, result, goal)))
        patch.setattr(bench_gpu, "launch", lambda given, seconds: train.main([str(x) for x in given]) or "")
        status = bench_gpu.main(["--tiny", "--steps", "1"])
    return printed, status


def test_every_part_runs_and_passes_on_a_cpu(table):
    printed, status = table
    results = {work.strip(): result for work, result, _ in printed}
    assert status == 0 and "FAIL" not in results.values() and "left out" not in results.values()
    passed = [work for work, result in results.items() if result == "pass"]
    assert len(passed) == 10, passed
    for rows in (8, 16):
        assert results[f"sampling, {rows} x (8 + 4) tokens"].endswith("tokens/s")
        assert results[f"update, {rows} x (8 + 4) tokens"].endswith("tokens/s")
    assert "predicted rewards right" in results and "greedy accuracy out of domain" in results
    assert results["as fast as eager"].endswith(" x")
    assert sum("update" in goal and "sample" in goal for *_, goal in printed) == 2  # a run's seconds by stage
