"""Single operations in PyTorch: the other side of `engine-bench kernels --compare pytorch`.

    python benches/pytorch/kernels.py linear forward 3072 384 1152      times one case, prints milliseconds

With `--serve` it prints `ready`, then answers `prepare CASE` with `ready` and `run SECONDS` with the seconds of each of
the calls that fit into that time, at least one, after an uncounted one. The cases are those of src/profile/cases.

Where an operation can write into memory that is there already, it does: PyTorch's time is that of its kernel, without
allocations. Weights rotate through more memory than the caches hold, as those of a model's layers do.
"""

import argparse
import statistics
import sys
import time

import torch
from torch.nn import functional as F

ROTATION_FLOATS = 24 << 20


def rotation(floats):
    return min(64, -(-ROTATION_FLOATS // floats))


def linear(kind, rows, inputs, outputs):
    weights = [torch.randn(outputs, inputs) for _ in range(rotation(inputs * outputs))]
    x, grad = torch.randn(rows, inputs), torch.randn(rows, outputs)
    y, grad_x = torch.empty(rows, outputs), torch.empty(rows, inputs)
    turn = 0

    def run():
        nonlocal turn
        turn = (turn + 1) % len(weights)
        weight = weights[turn]
        if kind == "forward":
            torch.mm(x, weight.T, out=y)
        elif kind == "grad_input":
            torch.mm(grad, weight, out=grad_x)
        else:
            torch.mm(grad.T, x, out=weight)

    return torch.no_grad()(run)


def attention(with_backward, B, H, T, D):
    leaves = [torch.randn(B, H, T, D, requires_grad=with_backward) for _ in range(3)]
    grad = torch.randn(B, H, T, D)

    def run():
        y = F.scaled_dot_product_attention(*leaves, is_causal=True)
        if with_backward:
            for leaf in leaves:
                leaf.grad = None
            y.backward(grad)

    return run


def attention_decode(B, H, T, D):
    query = torch.randn(B, H, 1, D)
    caches = [torch.randn(2, B, H, T, D) for _ in range(rotation(2 * B * H * T * D))]
    turn = 0

    def run():
        nonlocal turn
        turn = (turn + 1) % len(caches)
        F.scaled_dot_product_attention(query, *caches[turn])

    return run


def layer_norm(with_backward, rows, channels):
    x, weight, bias = (torch.randn(size, requires_grad=with_backward) for size in ((rows, channels), channels, channels))
    grad = torch.randn(rows, channels)

    def run():
        y = F.layer_norm(x, (channels,), weight, bias)
        if with_backward:
            x.grad = weight.grad = bias.grad = None
            y.backward(grad)

    return run


def softmax_cross_entropy(with_backward, rows, vocabulary):
    logits = torch.randn(rows, vocabulary, requires_grad=with_backward)
    targets = torch.randint(vocabulary, (rows,))

    def run():
        loss = F.cross_entropy(logits, targets)
        if with_backward:
            logits.grad = None
            loss.backward()

    return run


def embedding(with_backward, batch, length, channels, vocabulary):
    ids = torch.randint(vocabulary, (batch, length))
    if with_backward:
        grad = torch.randn(batch, length, channels)
        return lambda: torch.ops.aten.embedding_dense_backward(grad, ids, vocabulary, -1, False)
    tokens, positions = torch.randn(vocabulary, channels), torch.randn(length, channels)
    return lambda: F.embedding(ids, tokens).add_(positions)


def dropout(rows, channels):
    x = torch.randn(rows, channels)
    return lambda: F.dropout(x, 0.1, training=True)


def gpt2_gradients():
    """Tensors of the sizes of GPT-2 124M's."""
    c, layers = 768, 12
    block = [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (4 * c, c), (4 * c,), (c, 4 * c), (c,)]
    return [torch.randn(shape) for shape in [(50257, c), (1024, c)] + block * layers + [(c,), (c,)]]


def grad_norm():
    gradients = gpt2_gradients()
    return lambda: torch.nn.utils.get_total_norm(gradients)


def adamw():
    parameters = gpt2_gradients()
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.1, fused=True).step


CASES = {
    "linear forward": lambda *sizes: linear("forward", *sizes),
    "linear grad_input": lambda *sizes: linear("grad_input", *sizes),
    "linear grad_weight": lambda *sizes: linear("grad_weight", *sizes),
    "attention forward": lambda *sizes: attention(False, *sizes),
    "attention forward+backward": lambda *sizes: attention(True, *sizes),
    "attention decode": attention_decode,
    "layer_norm forward": lambda *sizes: layer_norm(False, *sizes),
    "layer_norm forward+backward": lambda *sizes: layer_norm(True, *sizes),
    "softmax_cross_entropy forward": lambda *sizes: softmax_cross_entropy(False, *sizes),
    "softmax_cross_entropy forward+backward": lambda *sizes: softmax_cross_entropy(True, *sizes),
    "embedding forward": lambda *sizes: embedding(False, *sizes),
    "embedding backward": lambda *sizes: embedding(True, *sizes),
    "dropout forward": dropout,
    "grad_norm": grad_norm,
    "adamw": adamw,
}


def prepare(words):
    name = " ".join(word for word in words if not word.isdigit())
    if name not in CASES:
        sys.exit(f"no case {name!r}; there are: {', '.join(CASES)}")
    run = CASES[name](*(int(word) for word in words if word.isdigit()))
    run()
    return run


def measure(run, seconds):
    run()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def main():
    parser = argparse.ArgumentParser(description="time single operations in PyTorch")
    parser.add_argument("case", nargs="*", help="what to time, and its sizes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to measure")
    parser.add_argument("--serve", action="store_true", help="take commands on standard input")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    if not options.serve:
        times = measure(prepare(options.case), options.seconds)
        print(f"{1e3 * statistics.median(times):.4f} ms, median of {len(times)}")
        return
    print("ready", flush=True)
    run = None
    for line in sys.stdin:
        command, *words = line.split()
        if command == "prepare":
            run = None  # frees what the last case held
            run = prepare(words)
            print("ready", flush=True)
        else:
            print(*measure(run, float(words[0])), flush=True)


if __name__ == "__main__":
    main()
