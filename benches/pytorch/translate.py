"""The recipe of a translation run in PyTorch: an encoder-decoder from scratch, then greedy translations.

    engine-train --preset translate-en-zh --set data.path=... --set data.val_path=... --set data.tokenizer=... --out RUN
    python benches/pytorch/translate.py RUN --threads 2

All settings are read from the run's `config.toml`, so that both learn by the same recipe; what this script does not do is
refused. The same model (pre-norm blocks, learned positions, one embedding for both sides and the output, tanh-GELU, dropout
in the same places, the same distribution of first weights, or those of `model.initial`), the same batches shape for shape
(rows of `data.buckets` lengths, by the longer side; as many tokens a batch, padding included, as `train.batch` rows of the
longest; the decoder one position shorter), the same loss, schedule and number of updates; only the random numbers differ.
Seconds count updates only. Prints a JSON object for each update and each evaluation; the last has BLEU and chrF, by
sacreBLEU, of all validation pairs.
"""

import argparse
import csv
import gzip
import json
import math
import pathlib
import random
import time
import tomllib

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

# What this script takes for granted: settings and their only value here.
FIXED = {
    "model": {
        "architecture": "encoder-decoder", "norm": "layer", "norm_place": "pre", "activation": "gelu-tanh",
        "positions": "learned", "tied": True, "biases": True, "token_types": 0, "embedding_norm": False,
        "head_transform": False, "convolution_taps": 0, "frozen_layers": 0,
    },
    "data": {"layout": "padded"},
    "train": {"task": "translation", "accumulate": 1},
    "optimizer": {"name": "adamw", "layer_decay": 1.0},
    "schedule": {"kind": "cosine"},
    "lora": {"rank": 0},
}


class Section:
    def __init__(self, values):
        self.__dict__ = values

    def __getattr__(self, name):
        """Of a setting that is not in the file."""
        return None


def attend(q, k, v, heads, mask=None, causal=False, dropout=0.0):
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(split(q), split(k), split(v), mask, dropout, causal)
    return mixed.transpose(1, 2).flatten(2)


def norm(m):
    return nn.LayerNorm(m.channels, eps=m.norm_epsilon)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.qkv, self.projection = nn.Linear(c, 3 * c), nn.Linear(c, c)


class Cross(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.query, self.key_value, self.projection = nn.Linear(c, c), nn.Linear(c, 2 * c), nn.Linear(c, c)


class FeedForward(nn.Module):
    def __init__(self, c, hidden):
        super().__init__()
        self.up, self.down = nn.Linear(c, hidden), nn.Linear(hidden, c)


class Block(nn.Module):
    def __init__(self, m, crosses):
        super().__init__()
        self.heads, self.rate = m.heads, m.dropout
        self.attention_norm, self.attention = norm(m), Attention(m.channels)
        if crosses:
            self.cross_norm, self.cross = norm(m), Cross(m.channels)
        self.ffn_norm, self.ffn = norm(m), FeedForward(m.channels, m.ffn or 4 * m.channels)

    def drop(self, x):
        return F.dropout(x, self.rate, self.training)

    def forward(self, x, mask=None, memory=None):
        rate = self.rate if self.training else 0.0
        qkv = self.attention.qkv(self.attention_norm(x)).chunk(3, -1)
        is_decoder = memory is not None
        mixed = attend(*qkv, self.heads, None if is_decoder else mask, is_decoder, rate)
        x = x + self.drop(self.attention.projection(mixed))
        if is_decoder:
            keys, values = self.cross.key_value(memory).chunk(2, -1)
            mixed = attend(self.cross.query(self.cross_norm(x)), keys, values, self.heads, mask, dropout=rate)
            x = x + self.drop(self.cross.projection(mixed))
        return x + self.drop(self.ffn.down(F.gelu(self.ffn.up(self.ffn_norm(x)), approximate="tanh")))


class Stack(nn.Module):
    def __init__(self, m, crosses):
        super().__init__()
        self.rate = m.dropout
        self.position_embedding = nn.Embedding(m.block, m.channels)
        self.blocks = nn.ModuleList(Block(m, crosses) for _ in range(m.layers))
        self.final_norm = norm(m)

    def forward(self, tokens, mask, memory=None):
        x = F.dropout(tokens + self.position_embedding.weight[: tokens.shape[1]], self.rate, self.training)
        for block in self.blocks:
            x = block(x, mask, memory)
        return self.final_norm(x)


class Translator(nn.Module):
    """Its parameters have the names that `model.safetensors` has."""

    def __init__(self, m, vocabulary):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, m.channels)
        self.encoder, self.decoder = Stack(m, False), Stack(m, True)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                into_stream = name.endswith(("projection.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (3 * m.layers) ** 0.5 if into_stream else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def encode(self, source, mask):
        return self.encoder(self.token_embedding(source), mask)

    def forward(self, source, mask, target):
        return self.decode(self.encode(source, mask), mask, target)

    def decode(self, memory, mask, target):
        return F.linear(self.decoder(self.token_embedding(target), mask, memory), self.token_embedding.weight)


def read(path, names):
    opened = gzip.open(path, "rt", encoding="utf-8", newline="") if str(path).endswith(".gz") else open(path, newline="")
    with opened as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [[row[name] for row in rows] for name in names]


def batches(pairs, batch, longest, buckets, shuffled):
    """Length and examples of each batch. What is left at the end moves into the next larger bucket where there is room."""
    order = list(range(len(pairs)))
    if shuffled:
        random.shuffle(order)
    shortest = min(3, longest)
    times = sorted({max(-(-longest * (k + 1) // buckets), shortest) for k in range(buckets)})
    rows = {time: max(1, batch * longest // time) for time in times}
    waiting, made = {time: [] for time in times}, []
    for example in order:
        time = next(time for time in times if time >= max(map(len, pairs[example])))
        waiting[time].append(example)
        if len(waiting[time]) == rows[time]:
            made.append((time, waiting[time]))
            waiting[time] = []
    for place, time in enumerate(times):
        left = waiting[time]
        larger = times[place + 1] if place + 1 < len(times) else None
        if larger and waiting[larger] and len(waiting[larger]) + len(left) <= rows[larger]:
            waiting[larger] += left
        elif left:
            made.append((time, left))
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
def translate(model, sources, tokenizer, start, end, most):
    """Greedy, in batches of like lengths; the whole prefix is computed again for each token."""
    order, texts = sorted(range(len(sources)), key=lambda i: len(sources[i])), [""] * len(sources)
    for first in range(0, len(order), 32):
        chosen = order[first : first + 32]
        pairs = [(sources[i], [start, end]) for i in chosen]
        source, mask, _, _ = tensors((max(len(sources[i]) for i in chosen), range(len(chosen))), pairs)
        memory, found = model.encode(source, mask), torch.full((len(chosen), 1), start)
        for _ in range(most):
            following = model.decode(memory, mask, found)[:, -1].argmax(-1)
            found = torch.cat([found, following[:, None]], 1)
            if (found == end).any(1).all():
                break
        for i, row in zip(chosen, found[:, 1:].tolist()):
            tokens = row[: row.index(end)] if end in row else row
            texts[i] = tokenizer.decode(tokens, skip_special_tokens=False).strip()
    return texts


@torch.no_grad()
def validation_loss(model, pairs, made):
    model.eval()
    total, count = 0.0, 0
    for batch in made:
        source, mask, target, predicted = tensors(batch, pairs)
        logits = model(source, mask, target)
        total += F.cross_entropy(logits.flatten(0, 1), predicted.flatten(), reduction="sum").item()
        count += int((predicted != -100).sum())
    model.train()
    return total / count


def scores(texts, references):
    """BLEU and chrF; words are Chinese characters where most references have some."""
    import sacrebleu

    chinese = sum(any("\u4e00" <= c <= "\u9fff" for c in text) for text in references)
    tokenize = "zh" if 2 * chinese > len(references) else "13a"
    return {
        "bleu": sacrebleu.corpus_bleu(texts, [references], tokenize=tokenize).score,
        "chrf": sacrebleu.corpus_chrf(texts, [references]).score,
    }


def main():
    parser = argparse.ArgumentParser(description="train an encoder-decoder on pairs of texts in PyTorch")
    parser.add_argument("run", type=pathlib.Path, help="folder of a run of engine-train, for its config.toml")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="stop after so many updates, for timing")
    parser.add_argument("--skip-evaluation", action="store_true")
    parser.add_argument("--predictions", help="file for the translations of the validation pairs, one JSON object a line")
    o = parser.parse_args()

    config = tomllib.loads((o.run / "config.toml").read_text(encoding="utf-8"))
    for section, fixed in FIXED.items():
        for key, value in fixed.items():
            if config[section].get(key, value) != value:
                parser.error(f"{section}.{key} is {config[section][key]!r}, but this script knows {value!r} only")
    m, d, t = (Section(config[name]) for name in ("model", "data", "train"))
    adam, schedule = Section(config["optimizer"]), Section(config["schedule"])
    longest = d.max_tokens or m.block

    torch.set_num_threads(o.threads)
    torch.manual_seed(t.seed)
    random.seed(t.seed)
    tokenizer = Tokenizer.from_file(d.tokenizer)
    tokenizer.no_padding()
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")

    def load(path):
        texts = read(path, (d.text, d.text_pair))
        frame = lambda ids: [start] + ids[: longest - 2] + [end]
        ids = lambda texts: [frame(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        return list(zip(ids(texts[0]), ids(texts[1]))), texts

    arrange = lambda pairs, shuffled: batches(pairs, t.batch, longest, d.buckets, shuffled)
    pairs, _ = load(d.path)
    model = Translator(m, m.vocabulary or tokenizer.get_vocab_size())
    if m.initial:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(pathlib.Path(m.initial) / "model.safetensors"))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": adam.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(adam.beta1, adam.beta2), eps=adam.epsilon, fused=True)
    plan = []
    while len(plan) < t.steps:
        plan += arrange(pairs, True)
    decay_steps = schedule.decay_steps or t.steps
    seconds, tokens = 0.0, 0
    model.train()
    for step, batch in enumerate(plan[: o.steps or t.steps]):
        if step < schedule.warmup:
            factor = (step + 1) / (schedule.warmup + 1)
        else:
            progress = min(1.0, (step - schedule.warmup) / max(1, decay_steps - schedule.warmup))
            factor = schedule.min_factor + (1 - schedule.min_factor) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = adam.learning_rate * factor
        source, mask, target, predicted = tensors(batch, pairs)
        begun = time.perf_counter()
        logits = model(source, mask, target)
        loss = F.cross_entropy(logits.flatten(0, 1), predicted.flatten(), label_smoothing=t.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if t.clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), t.clip)
        optimizer.step()
        seconds += time.perf_counter() - begun
        tokens += sum(len(pairs[i][0]) + len(pairs[i][1]) for i in batch[1])
        record = {"step": step + 1, "loss": loss.item(), "tokens_per_second": tokens / seconds}
        print(json.dumps(record), flush=True)
        if t.eval_every and (step + 1) % t.eval_every == 0 and d.val_path and not o.skip_evaluation:
            dev, _ = load(d.val_path)
            found = validation_loss(model, dev, arrange(dev, False))
            print(json.dumps({"step": step + 1, "val_loss": found}), flush=True)
    last = {"step": step + 1, "seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}
    if d.val_path and not o.skip_evaluation:
        dev, (sources, references) = load(d.val_path)
        last["val_loss"] = validation_loss(model, dev, arrange(dev, False))
        model.eval()
        texts = translate(model, [a for a, _ in dev], tokenizer, start, end, longest)
        last |= scores(texts, references)
        if o.predictions:
            with open(o.predictions, "w", encoding="utf-8") as file:
                for row in zip(sources, references, texts):
                    line = dict(zip(("source", "target", "translation"), row))
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(json.dumps(last), flush=True)


if __name__ == "__main__":
    main()
