"""The recipe of the preset `imdb` in PyTorch and `transformers`: fine-tune a BERT on texts with one class each.

    python benches/pytorch/classify.py --model FOLDER --train imdb_train.tsv.gz --dev imdb_dev.tsv.gz --threads 2

Reviews longer than `--max-tokens` lose their middle, as with `data.keep = "both"` (a quarter of what is left comes from the
start), or their end (`--keep start`); they go into rows of `--buckets` lengths, evenly spaced, and batches have as many tokens,
padding included, as `--batch` rows of the longest: as `data.layout = "padded"` does. AdamW, linear decay after a warm-up,
clip 1.0, dropout as the folder says. Seconds count training steps only, not evaluation; tokens do not count padding.
"""

import argparse
import csv
import gzip
import json
import math
import random
import time

import torch
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification


def read(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def cut(tokens, longest, keep):
    """`[CLS] text [SEP]` of at most `longest` tokens."""
    room = longest - 2
    if len(tokens) <= longest:
        return tokens
    text = tokens[1:-1]
    head = room if keep == "start" else room // 4
    return [tokens[0], *text[:head], *text[len(text) - (room - head) :], tokens[-1]]


def batches(lengths, options, shuffled):
    """Lists of examples of one bucket, and its length."""
    order = list(range(len(lengths)))
    if shuffled:
        random.shuffle(order)
    times = [-(-options.max_tokens * (k + 1) // options.buckets) for k in range(options.buckets)]
    waiting, made = {time: [] for time in times}, []
    for example in order:
        time = next(time for time in times if time >= lengths[example])
        waiting[time].append(example)
        if len(waiting[time]) == max(1, options.batch * options.max_tokens // time):
            made.append((time, waiting[time]))
            waiting[time] = []
    made += [(time, left) for time, left in waiting.items() if left]
    if shuffled:
        random.shuffle(made)
    return made


def tensors(batch, encoded, targets):
    time, examples = batch
    ids = torch.zeros(len(examples), time, dtype=torch.long)
    mask = torch.zeros(len(examples), time, dtype=torch.long)
    for row, example in enumerate(examples):
        ids[row, : len(encoded[example])] = torch.tensor(encoded[example])
        mask[row, : len(encoded[example])] = 1
    return ids, mask, targets[examples]


def main():
    parser = argparse.ArgumentParser(description="fine-tune a BERT on classes in PyTorch")
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--keep", choices=["start", "both"], default="both")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--buckets", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, help="stop after so many, for timing")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--skip-evaluation", action="store_true")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    tokenizer = Tokenizer.from_file(f"{options.model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    (texts, labels), (dev_texts, dev_labels) = read(options.train), read(options.dev)
    names = sorted(set(labels))
    encode = lambda texts: [
        cut(encoding.ids, options.max_tokens, options.keep) for encoding in tokenizer.encode_batch(texts)
    ]
    encoded, dev = encode(texts), encode(dev_texts)
    targets = torch.tensor([names.index(label) for label in labels])
    dev_targets = torch.tensor([names.index(label) for label in dev_labels])

    model = BertForSequenceClassification.from_pretrained(options.model, num_labels=len(names))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98), eps=1e-8, fused=True)
    lengths = [len(ids) for ids in encoded]
    plan = []
    for _ in range(math.ceil(options.epochs)):
        epoch = batches(lengths, options, True)
        plan += epoch
    plan = plan[: round(options.epochs * len(epoch))]
    total = len(plan)
    plan = plan[: options.steps] if options.steps else plan
    seconds, tokens = 0.0, 0
    model.train()
    for step, batch in enumerate(plan):
        rate = options.rate * min((step + 1) / options.warmup, max(0.0, (total - step) / (total - options.warmup)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, mask, wanted = tensors(batch, encoded, targets)
        start = time.perf_counter()
        loss = model(input_ids=ids, attention_mask=mask, labels=wanted).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - start
        tokens += int(mask.sum())
        if step % 50 == 49:
            print(f"step {step + 1} of {total}: loss {loss.item():.4f}, {tokens / seconds:.0f} tokens/s", flush=True)
    result = {"steps": len(plan), "seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}
    if not options.skip_evaluation:
        model.eval()
        right = 0
        with torch.no_grad():
            for batch in batches([len(ids) for ids in dev], options, False):
                ids, mask, wanted = tensors(batch, dev, dev_targets)
                right += int((model(input_ids=ids, attention_mask=mask).logits.argmax(1) == wanted).sum())
        result["accuracy"] = right / len(dev)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
