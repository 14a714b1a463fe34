#!/usr/bin/env bash
# destroy_process_group() does not end a gloo process group whose DDP model is still there: freeing the model does, later.
# Expected: after destroy_process_group() the group's threads are gone, whatever of the model is left, as its docstring
#   says "destroy" and training scripts call it last (accelerate's end_training does).
# Happens: DDP's reducer keeps the group. Its threads run on until the model is freed, in C++, without giving up Python's
#   lock while it joins them. A thread that wants that lock just then (to drop a tensor of the last collective) is waited
#   for in vain. Freed before the group is destroyed, the model ends nothing, and the group lets go of the lock.
# Why it matters here: once in hundreds of runs with two processes the table was printed, all was saved, and the run did not
#   end. Of this order, repeated, a debugger showed ~Reducer, ~ProcessGroupGloo, thread::join, and a thread in take_gil.
#   lab/processes.py gives up the wrapped model first. This script shows the order at rest, where nothing can hang.
# Version: torch 2.13.0 (CPU). Source: destructors in torch/csrc/distributed/c10d/reducer.cpp and ProcessGroupGloo.cpp
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/order.py" <<'PYTHON'
import gc, glob, sys, time
import torch, torch.distributed as dist
def threads():
    time.sleep(1)
    return sum(open(name).read().startswith("pt_gloo_runloop") for name in glob.glob("/proc/self/task/*/comm"))
for attempt in range(2):  # the threads of a process's first group stay to its end: the second is counted
    old = threads()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    counts = [threads() - old]
    for what in sys.argv[1:]:
        if what == "group":
            dist.destroy_process_group()
        else:
            model = None; gc.collect()
        counts.append(threads() - old)
print(*sys.argv[1:], ": threads of the group before, after the first, after the second", *counts)
PYTHON
"$folder/venv/bin/python" "$folder/order.py" group model 2> "$folder/told" | tee "$folder/said"
"$folder/venv/bin/python" "$folder/order.py" model group 2>> "$folder/told" | tee -a "$folder/said"
[ "$(grep -c "second 2 2 0" "$folder/said")" = 2 ]
