#!/usr/bin/env bash
# set_float32_matmul_precision("medium") makes attention over short rows several times slower on a processor.
# Expected: "medium" lets float32 products round their factors to bfloat16 where that is faster; on a processor with AMX
#   it is, about 3 times for products of a small model, so a training step in float32 should gain and nothing should lose.
# Happens: scaled_dot_product_attention multiplies many small blocks, each by the same switch, and for these the way
#   through oneDNN costs more than the product: 6 to 8 times the time for 32 and 100 tokens, 1.6 times for 512.
# Why it matters here: groups of short responses are what GRPO scores. A step of 128 rollouts of 64 tokens took 1.3 times as
#   long although its products got faster, so nothing here sets the switch (docs/speed.md). It cannot be set for the
#   products only: the backward pass of attention runs under whatever holds then.
# Needs: a processor with AVX-512, as the switch does. Version: torch 2.13.0 (CPU).
# Source: cpu_flash_attention in aten/src/ATen/native/cpu/FlashAttentionKernel.cpp, which calls cpublas::gemm a block.
set -euo pipefail
grep -q avx512bw /proc/cpuinfo || { echo "this processor has no AVX-512: the switch does nothing here"; exit 1; }
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/attend.py" <<'PYTHON'
import statistics, time
import torch, torch.nn.functional as F
torch.set_num_threads(1)
ratio = {}
for length in (32, 100, 512):
    q, k, v = (torch.randn(3200 // length, 4, length, 32, requires_grad=True) for _ in range(3))
    x, w = torch.randn(2048, 512), torch.randn(512, 512)
    work = {"attention": lambda: F.scaled_dot_product_attention(q, k, v).sum().backward(), "product": lambda: x @ w}
    for name, function in work.items():
        times = {"highest": [], "medium": []}
        for turn in range(20):
            for precision in times:
                torch.set_float32_matmul_precision(precision)
                start = time.process_time(); function(); times[precision].append(time.process_time() - start)
        ratio[name, length] = statistics.median(times["medium"]) / statistics.median(times["highest"])
    print(f"{length} tokens: attention takes {ratio['attention', length]:.1f} times as long under medium as under highest,",
          f"a product of 2048 x 512 x 512 {ratio['product', length]:.2f} times")
assert ratio["attention", 32] > 2
PYTHON
"$folder/venv/bin/python" "$folder/attend.py"
