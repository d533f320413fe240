"""The recipe of the preset `shakespeare-char` in PyTorch: time and final validation loss.

    python benches/pytorch/shakespeare_char.py --data tinyshakespeare.txt --threads 2

4 layers, 4 heads, 128 channels, block 64, batch 12, 2,000 steps, learning rate 2e-3 with 100 steps of warm-up and a
cosine down to a tenth, betas 0.9 and 0.99, weight decay 0.1, clip 1.0, no dropout; random windows of the first 90 % of the
characters, evaluated on 20 batches of the last 10 % every 250 steps (nanoGPT's CPU recipe at twice its learning rate, as the preset has it). The seconds count
everything after the data is in memory: training, evaluations, making batches. `--final-batches` more are evaluated after
the clock has stopped, because 20 batches leave an error of about 0.02 in the final figure.
"""

import argparse
import json
import math
import time

import torch

from gpt import GPT, adamw, train_step

LAYERS, HEADS, CHANNELS, BLOCK, BATCH = 4, 4, 128, 64, 12
PEAK_RATE, LAST_RATE, WARMUP = 2e-3, 2e-4, 100
EVAL_EVERY, EVAL_BATCHES = 250, 20


def learning_rate(step, steps):
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return LAST_RATE + 0.5 * (1 + math.cos(math.pi * progress)) * (PEAK_RATE - LAST_RATE)


def windows(tokens):
    starts = torch.randint(len(tokens) - BLOCK, (BATCH,))
    rows = torch.stack([tokens[start : start + BLOCK + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def evaluate(model, tokens, batches):
    return sum(model(*windows(tokens)).item() for _ in range(batches)) / batches


def main():
    parser = argparse.ArgumentParser(description="train on tinyshakespeare in PyTorch")
    parser.add_argument("--data", required=True, help="tinyshakespeare as one text file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--final-batches", type=int, default=200)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with open(options.data, encoding="utf-8") as file:
        text = file.read()
    ids = {character: index for index, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([ids[character] for character in text])
    train, validation = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]

    start = time.perf_counter()
    model = GPT(len(ids), BLOCK, LAYERS, HEADS, CHANNELS)
    optimizer = adamw(model, PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.1)
    evaluations = []
    for step in range(options.steps):
        if step % EVAL_EVERY == 0:
            evaluations.append((step, evaluate(model, validation, EVAL_BATCHES)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps)
        train_step(model, optimizer, *windows(train))
    evaluations.append((options.steps, evaluate(model, validation, EVAL_BATCHES)))
    seconds = time.perf_counter() - start

    result = {
        "seconds": seconds,
        "val_loss": evaluations[-1][1],
        f"val_loss_of_{options.final_batches}_batches": evaluate(model, validation, options.final_batches),
        "evaluations": evaluations,
        "steps": options.steps,
        "torch": torch.__version__,
        "threads": options.threads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
