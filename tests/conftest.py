"""What all tests share: the project on the path, one thread, and a small quick run."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)  # repeatable, and quicker than two threads that wait for each other


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """All tests together run in two processes, where pytest-xdist is there and nothing else is asked for."""
    everything = config.args_source == config.ArgsSource.TESTPATHS and not config.getoption("keyword")
    one_of_them = hasattr(config, "workerinput") or config.getoption("dist", "no") != "no"
    if config.pluginmanager.hasplugin("xdist") and everything and not one_of_them:
        config.option.dist, config.option.tx = "worksteal", ["2*popen"]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate settles the precision of a process once; tests want their own."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


@pytest.fixture
def quick(tmp_path):
    """Make the Config of a run of seconds: quick(mode="oracle", steps=3)."""
    from train import Config

    def make(**settings):
        small = dict(
            steps=2,
            batch_size=4,
            group_size=4,
            train_tasks=40,
            test_tasks=12,
            eval_samples=0,
            eval_every=2,
            gnn_epochs=5,
            gnn_networks=2,
            output_dir=str(tmp_path / "run"),
        )
        return Config(**{**small, **settings})

    return make
