"""Times whole training steps (forward, backward, clip, AdamW) of a GPT-2 shape in PyTorch, eager, f32.

    python benches/pytorch/train_step.py --layers 6 --heads 6 --channels 384 --vocab 65 --batch 12 --time 256 --threads 2

prints {"step_seconds_median", "step_seconds", "tokens_per_second", "peak_rss_bytes", ...} as JSON. With `--serve` it
answers each line `go` with the seconds of one step, so that a bench can take turns with it, step by step, in one run:
it prints `ready` once the warm-up is done, and ends at the end of its input, printing the same JSON on standard error.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import torch

from gpt import GPT, adamw, train_step


def main():
    parser = argparse.ArgumentParser(description="time training steps of a GPT-2 shape in PyTorch")
    for name, default in (
        ("layers", 12), ("heads", 12), ("channels", 768), ("vocab", 50257), ("batch", 4), ("time", 64),
        ("steps", 10), ("warmup", 2), ("threads", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--serve", action="store_true", help="one step for each line `go` on standard input")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    model = GPT(options.vocab, options.time, options.layers, options.heads, options.channels)
    optimizer = adamw(model, learning_rate=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    shape = (options.batch, options.time)
    inputs, targets = torch.randint(options.vocab, shape), torch.randint(options.vocab, shape)

    def timed_step():
        start = time.perf_counter()
        train_step(model, optimizer, inputs, targets)
        return time.perf_counter() - start

    for _ in range(options.warmup):  # the first allocates the optimizer's state
        timed_step()
    seconds = []
    if options.serve:
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() != "go":
                sys.exit(f"expected a line `go`, got {line!r}")
            seconds.append(timed_step())
            print(seconds[-1], flush=True)
    else:
        seconds = [timed_step() for _ in range(options.steps)]
    if not seconds:
        return
    median = statistics.median(seconds)
    result = {
        "step_seconds_median": median,
        "step_seconds": seconds,
        "tokens_per_second": options.batch * options.time / median,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "parameters": sum(p.numel() for p in model.parameters()),
        "optimizer_is_fused": bool(optimizer.defaults.get("fused")),
        "torch": torch.__version__,
        "threads": options.threads,
    }
    print(json.dumps(result), file=sys.stderr if options.serve else sys.stdout)


if __name__ == "__main__":
    main()
