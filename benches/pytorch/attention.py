"""Times PyTorch's fused attention, forward and backward, causal, f32, on the CPU.

Queries, keys and values are separate contiguous tensors: the function by itself, at its best. With --packed they are
views of one projection (B, T, 3, H, D), as a transformer has them, and the gradient is packed as well.
Prints one line of JSON.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

parser = argparse.ArgumentParser(description=__doc__)
for size in ("batch", "heads", "time", "head_size"):
    parser.add_argument(size, type=int)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--seconds", type=float, default=0.3, help="how long to measure")
parser.add_argument("--packed", action="store_true")
arguments = parser.parse_args()
B, H, T, D = arguments.batch, arguments.heads, arguments.time, arguments.head_size

torch.set_num_threads(arguments.threads)
torch.manual_seed(0)
if arguments.packed:
    leaves = [torch.randn(B, T, 3, H, D, requires_grad=True)]
    grad_output = torch.randn(B, T, H * D)
else:
    leaves = [torch.randn(B, H, T, D, requires_grad=True) for _ in range(3)]
    grad_output = torch.randn(B, H, T, D)


def step():
    for leaf in leaves:
        leaf.grad = None
    if arguments.packed:
        query, key, value = (part.transpose(1, 2) for part in leaves[0].unbind(2))
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output = output.transpose(1, 2).reshape(B, T, H * D)
    else:
        output = F.scaled_dot_product_attention(*leaves, is_causal=True)
    output.backward(grad_output)


for _ in range(5):
    step()
seconds = []
end = time.perf_counter() + arguments.seconds
while time.perf_counter() < end or len(seconds) < 5:
    start = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds_median": statistics.median(seconds), "repetitions": len(seconds), "torch": torch.__version__}))
