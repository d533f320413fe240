"""Times PyTorch's layer norm, cross-entropy and AdamW, for benches/ops.rs to compare with.

    python ops.py                 all of them, nine runs each: one JSON object with medians in seconds
    python ops.py --serve NAME..  prepares these, then for each name that arrives on standard input warms up
                                  for 20 ms, runs it once more and answers with the seconds of that run: so
                                  that two programs can take turns

Threads: ENGINE_THREADS, else all cores.
"""

import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

WARM_UP_SECONDS = 0.02

torch.set_num_threads(int(os.environ.get("ENGINE_THREADS", os.cpu_count())))
torch.manual_seed(1)


def layer_norm():
    x = torch.randn(8192, 768, requires_grad=True)
    weight = torch.randn(768, requires_grad=True)
    bias = torch.randn(768, requires_grad=True)
    grad = torch.randn(8192, 768)

    def run():
        x.grad = weight.grad = bias.grad = None
        F.layer_norm(x, (768,), weight, bias).backward(grad)

    return run


def softmax_cross_entropy():
    logits = torch.randn(2048, 50257, requires_grad=True)
    targets = torch.randint(0, 50257, (2048,))

    def run():
        logits.grad = None
        F.cross_entropy(logits, targets).backward()

    return run


def gpt2_parameters():
    """Tensors of the sizes of GPT-2 124M's."""
    c, layers = 768, 12
    block = [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (4 * c, c), (4 * c,), (c, 4 * c), (c,)]
    shapes = [(50257, c), (1024, c)] + block * layers + [(c,), (c,)]
    parameters = [torch.randn(shape) * 0.02 for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def adamw(**which):
    optimizer = torch.optim.AdamW(gpt2_parameters(), lr=1e-4, weight_decay=0.1, **which)
    return optimizer.step


OPERATIONS = {
    "layer_norm": layer_norm,
    "softmax_cross_entropy": softmax_cross_entropy,
    "adamw": lambda: adamw(fused=True),
    "adamw_foreach": lambda: adamw(foreach=True),
}


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def prepared(name):
    run = OPERATIONS[name]()
    run()
    return run


def main():
    if sys.argv[1:2] == ["--serve"]:
        runs = {name: prepared(name) for name in sys.argv[2:]}
        print("ready", flush=True)
        for line in sys.stdin:
            run = runs[line.strip()]
            turn = time.perf_counter()
            while time.perf_counter() - turn < WARM_UP_SECONDS:
                run()
            print(seconds(run), flush=True)
    else:
        medians = {}
        for name in OPERATIONS:
            run = prepared(name)
            medians[name] = statistics.median(seconds(run) for _ in range(9))
            del run
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "median_seconds": medians}))


main()
