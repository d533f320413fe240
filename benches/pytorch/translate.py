"""The recipe of the preset `translate-en-zh` in PyTorch: an encoder-decoder from scratch, then greedy translations.

    python benches/pytorch/translate.py --train en_zh_train.tsv.gz --dev en_zh_dev.tsv.gz --tokenizer en-zh.json --threads 2

The same model (pre-norm blocks, learned positions, one embedding for both sides and the output, tanh-GELU, dropout in the
same places), the same batches shape for shape (rows of `--buckets` lengths, by the longer side; as many tokens a batch,
padding included, as `--batch` rows of the longest; the decoder one position shorter), the same loss and schedule. Seconds
count training steps only. Prints a line of JSON for each 20 steps and each evaluation, the last with BLEU and chrF.
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
from torch import nn
from torch.nn import functional as F


def attend(q, k, v, heads, mask=None, causal=False, dropout=0.0):
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(split(q), split(k), split(v), mask, dropout, causal)
    return mixed.transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, o, crosses):
        super().__init__()
        c = o.channels
        self.o, self.crosses = o, crosses
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(3 if crosses else 2))
        self.qkv, self.projection = nn.Linear(c, 3 * c), nn.Linear(c, c)
        if crosses:
            self.query, self.key_value, self.cross_projection = nn.Linear(c, c), nn.Linear(c, 2 * c), nn.Linear(c, c)
        self.up, self.down = nn.Linear(c, o.ffn), nn.Linear(o.ffn, c)

    def drop(self, x):
        return F.dropout(x, self.o.dropout, self.training)

    def forward(self, x, mask=None, memory=None):
        rate = self.o.dropout if self.training else 0.0
        mixed = attend(*self.qkv(self.norms[0](x)).chunk(3, -1), self.o.heads, mask if memory is None else None,
                       memory is not None, rate)
        x = x + self.drop(self.projection(mixed))
        if memory is not None:
            mixed = attend(self.query(self.norms[1](x)), *self.key_value(memory).chunk(2, -1), self.o.heads, mask,
                           dropout=rate)
            x = x + self.drop(self.cross_projection(mixed))
        return x + self.drop(self.down(F.gelu(self.up(self.norms[-1](x)), approximate="tanh")))


class Stack(nn.Module):
    def __init__(self, o, crosses):
        super().__init__()
        self.o = o
        self.positions = nn.Embedding(o.block, o.channels)
        self.blocks = nn.ModuleList(Block(o, crosses) for _ in range(o.layers))
        self.norm = nn.LayerNorm(o.channels)

    def forward(self, tokens, mask, memory=None):
        x = F.dropout(tokens + self.positions.weight[: tokens.shape[1]], self.o.dropout, self.training)
        for block in self.blocks:
            x = block(x, mask, memory)
        return self.norm(x)


class Translator(nn.Module):
    def __init__(self, o, vocabulary):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, o.channels)
        self.encoder, self.decoder = Stack(o, False), Stack(o, True)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                into_stream = "projection" in name or "down" in name
                nn.init.normal_(parameter, std=0.02 / (3 * o.layers) ** 0.5 if into_stream else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def encode(self, source, mask):
        return self.encoder(self.tokens(source), mask)

    def forward(self, source, mask, target):
        return self.decode(self.encode(source, mask), mask, target)

    def decode(self, memory, mask, target):
        return F.linear(self.decoder(self.tokens(target), mask, memory), self.tokens.weight)


def read(path, names):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [[row[name] for row in rows] for name in names]


def batches(pairs, o, shuffled):
    """Length and examples of each batch."""
    order = list(range(len(pairs)))
    if shuffled:
        random.shuffle(order)
    times = [-(-o.max_tokens * (k + 1) // o.buckets) for k in range(o.buckets)]
    waiting, made = {time: [] for time in times}, []
    for example in order:
        time = next(time for time in times if time >= max(map(len, pairs[example])))
        waiting[time].append(example)
        if len(waiting[time]) == max(1, o.batch * o.max_tokens // time):
            made.append((time, waiting[time]))
            waiting[time] = []
    made += [(time, left) for time, left in waiting.items() if left]
    if shuffled:
        random.shuffle(made)
    return made


def tensors(batch, pairs):
    """Source, its mask, what the decoder reads and what it predicts; -100 where there is nothing to predict."""
    time, examples = batch
    source, target = (torch.zeros(len(examples), time, dtype=torch.long) for _ in range(2))
    predicted = torch.full((len(examples), time - 1), -100)
    mask = torch.zeros(len(examples), 1, 1, time, dtype=torch.bool)
    for row, example in enumerate(examples):
        a, b = pairs[example]
        source[row, : len(a)], target[row, : len(b)] = torch.tensor(a), torch.tensor(b)
        predicted[row, : len(b) - 1], mask[row, ..., : len(a)] = torch.tensor(b[1:]), True
    return source, mask, target[:, :-1], predicted


@torch.no_grad()
def translate(model, sources, tokenizer, o):
    """Greedy, in batches of like lengths; the whole prefix is computed again for each token."""
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    order, texts = sorted(range(len(sources)), key=lambda i: len(sources[i])), [""] * len(sources)
    for first in range(0, len(order), 32):
        chosen = order[first : first + 32]
        pairs = [(sources[i], [start, end]) for i in chosen]
        source, mask, _, _ = tensors((max(len(sources[i]) for i in chosen), range(len(chosen))), pairs)
        memory, found = model.encode(source, mask), torch.full((len(chosen), 1), start)
        for _ in range(o.max_tokens):
            following = model.decode(memory, mask, found)[:, -1].argmax(-1)
            found = torch.cat([found, following[:, None]], 1)
            if (found == end).any(1).all():
                break
        for i, row in zip(chosen, found[:, 1:].tolist()):
            tokens = row[: row.index(end)] if end in row else row
            texts[i] = tokenizer.decode(tokens, skip_special_tokens=False).strip()
    return texts


@torch.no_grad()
def evaluate(model, pairs, references, tokenizer, o):
    import sacrebleu

    model.eval()
    total, count = 0.0, 0
    for batch in batches(pairs, o, False):
        source, mask, target, predicted = tensors(batch, pairs)
        logits = model(source, mask, target)
        total += F.cross_entropy(logits.flatten(0, 1), predicted.flatten(), reduction="sum").item()
        count += int((predicted != -100).sum())
    wanted = min(o.translations, len(pairs))
    chosen = [i * len(pairs) // wanted for i in range(wanted)]
    texts = translate(model, [pairs[i][0] for i in chosen], tokenizer, o)
    references = [[references[i] for i in chosen]]
    tokenize = "zh" if o.target == "zh" else "13a"
    model.train()
    return {
        "val_loss": total / count,
        "bleu": sacrebleu.corpus_bleu(texts, references, tokenize=tokenize).score,
        "chrf": sacrebleu.corpus_chrf(texts, references).score,
    }


def main():
    parser = argparse.ArgumentParser(description="train an encoder-decoder on pairs of texts in PyTorch")
    for name in ("train", "dev", "tokenizer"):
        parser.add_argument(f"--{name}", required=True)
    for name, value in {
        "source": "en", "target": "zh", "layers": 3, "heads": 4, "channels": 256, "ffn": 1024, "block": 64,
        "dropout": 0.1, "max-tokens": 64, "batch": 32, "buckets": 8, "epochs": 12.0, "eval-every": 500,
        "translations": 200, "rate": 1e-3, "warmup": 400, "smoothing": 0.1, "weight-decay": 0.01, "threads": 2,
        "seed": 1337,
    }.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--steps", type=int, help="stop after so many, for timing")
    o = parser.parse_args()

    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    random.seed(o.seed)
    tokenizer = Tokenizer.from_file(o.tokenizer)
    tokenizer.no_padding()
    tokenizer.enable_truncation(o.max_tokens)

    def load(path):
        sources, targets = read(path, (o.source, o.target))
        ids = lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        return list(zip(ids(sources), ids(targets))), targets

    (pairs, _), (dev, references) = load(o.train), load(o.dev)
    model = Translator(o, tokenizer.get_vocab_size())
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": o.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=o.rate, betas=(0.9, 0.98), eps=1e-8, fused=True)
    plan = []
    for _ in range(math.ceil(o.epochs)):
        epoch = batches(pairs, o, True)
        plan += epoch
    total = round(o.epochs * len(epoch))
    plan = plan[: o.steps or total]
    seconds, tokens, losses = 0.0, 0, []
    model.train()
    for step, batch in enumerate(plan):
        decay = 0.5 * (1 + math.cos(math.pi * max(0.0, step + 1 - o.warmup) / max(1, total - o.warmup)))
        for group in optimizer.param_groups:
            group["lr"] = o.rate * min((step + 1) / o.warmup, decay)
        source, mask, target, predicted = tensors(batch, pairs)
        start = time.perf_counter()
        logits = model(source, mask, target)
        loss = F.cross_entropy(logits.flatten(0, 1), predicted.flatten(), label_smoothing=o.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += time.perf_counter() - start
        tokens += sum(len(pairs[i][0]) + len(pairs[i][1]) for i in batch[1])
        losses.append(loss.item())
        if step % 20 == 19:
            mean = sum(losses[-20:]) / 20
            print(json.dumps({"step": step + 1, "loss": mean, "tokens_per_second": tokens / seconds}), flush=True)
        if (step + 1) % o.eval_every == 0 or step + 1 == len(plan):
            figures = evaluate(model, dev, references, tokenizer, o)
            print(json.dumps({"step": step + 1, "seconds": seconds, "tokens": tokens, **figures}), flush=True)


if __name__ == "__main__":
    main()
