"""train.py, for the tests: it fails where a wrapped model outlives its process group (see `processes.leave`).

    torchrun --standalone --nproc_per_node 2 tests/two_on_cpu.py --steps 3 ...
"""

import gc
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import train

    destroy = torch.distributed.destroy_process_group

    def checked(group=None):
        kind = torch.nn.parallel.DistributedDataParallel
        left = any(type(thing) is kind for thing in gc.get_objects())
        assert not left, "a model outlives its process group"
        destroy(group)

    torch.distributed.destroy_process_group = checked
    train.main(sys.argv[1:])
    assert not torch.distributed.is_initialized(), "the process group is still there"
