"""train.py with FSDP on the CPU, for the tests: accelerate itself switches FSDP on for GPUs only.

    accelerate launch --config_file tests/fsdp_on_cpu.yaml tests/fsdp_on_cpu.py --steps 3 ...
"""

import sys
from pathlib import Path

import accelerate
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin


class Accelerator(accelerate.Accelerator):
    """Told, once it is there, that its processes shard the model."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # reads accelerate's config file
        self.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    accelerate.Accelerator = Accelerator
    import train

    train.main(sys.argv[1:])
