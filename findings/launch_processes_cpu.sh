#!/usr/bin/env bash
# On a machine without GPUs `accelerate launch --num_processes 2` starts one process, and says nothing of it.
# Expected: two processes, as on two GPUs, or a line that two cannot be had this way.
# Happens: one, with --cpu as without it; WORLD_SIZE and RANK are not set. The only warning is about other defaults, and
#   --multi_gpu beside --cpu is refused. torchrun starts two, which the same script then uses.
# Why it matters here: a run that one believes shared by two processes takes as long as before, and its results cannot show
#   it, being meant to be the same for any number; our own benchmark compared one process with one.
# Version: accelerate 1.15.0, torch 2.13.0. Source: launch_command in
#   https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/commands/launch.py
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q accelerate==1.15.0
cat > "$folder/hello.py" <<'PYTHON'
from accelerate import PartialState
state = PartialState(cpu=True)
print(f"process {state.process_index} of {state.num_processes}", flush=True)
PYTHON
count() { grep -c "^process" "$1" || true; }
for flags in "--cpu" ""; do
    "$folder/venv/bin/accelerate" launch $flags --num_processes 2 "$folder/hello.py" > "$folder/launch$flags" 2> "$folder/told$flags"
    echo "accelerate launch $flags --num_processes 2:"; cat "$folder/launch$flags"
done
"$folder/venv/bin/torchrun" --standalone --nproc_per_node 2 "$folder/hello.py" > "$folder/torchrun" 2> /dev/null
echo "torchrun --nproc_per_node 2:"; sort "$folder/torchrun"
[ "$(count "$folder/launch--cpu") $(count "$folder/launch") $(count "$folder/torchrun")" = "1 1 2" ]
