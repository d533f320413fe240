"""The recipe of the preset `question-answering` in PyTorch and `transformers`, taken from the folder of a run.

    python benches/pytorch/answer.py runs/answers --threads 2

The same windows over contexts (`data.max_tokens`, `data.stride`), batches of as many tokens, padding included, as
`train.batch` rows of the longest (rows of `data.buckets` lengths, as with `data.layout = "padded"`), AdamW, linear decay
after a warm-up, clipping. Answers are scored as SQuAD's script does, Chinese by character. Seconds count training steps only.
The folder that model.initial names has to be one that `transformers` reads; what answers is a new layer on either side.
"""

import argparse
import collections
import gzip
import json
import pathlib
import random
import re
import string
import time
import tomllib

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import BertForQuestionAnswering

LONGEST_ANSWER = 30
Window = collections.namedtuple("Window", "question tokens context characters answer")


def read(path):
    opened = gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8")
    with opened as file:
        return [json.loads(line) for line in file]


def windows(questions, tokenizer, longest, stride):
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    made = []
    for number, row in enumerate(questions):
        asked = tokenizer.encode(row["question"], add_special_tokens=False).ids
        context = tokenizer.encode(row["context"], add_special_tokens=False)
        place, room = row["answer_start"], longest - 3 - len(asked)
        place = place[0] if isinstance(place, list) else place
        behind = place + len(row["answers"][0])
        first = next(i for i, (_, to) in enumerate(context.offsets) if to > place)
        last = max(i for i, (begin, _) in enumerate(context.offsets) if begin < behind)
        at, before = 0, len(asked) + 2
        while True:
            to = min(len(context.ids), at + room)
            tokens = [start, *asked, end, *context.ids[at:to], end]
            inside = at <= first and last < to
            answer = (before + first - at, before + last - at) if inside else (0, 0)
            made.append(Window(number, tokens, (before, before + to - at), context.offsets[at:to], answer))
            if to == len(context.ids):
                break
            at = to - stride
    return made


def batches(made, batch, longest, buckets, shuffled):
    order = list(range(len(made)))
    if shuffled:
        random.shuffle(order)
    times = [-(-longest * (k + 1) // buckets) for k in range(buckets)]
    waiting, full = {time: [] for time in times}, []
    for i in order:
        time = next(time for time in times if time >= len(made[i].tokens))
        waiting[time].append(i)
        if len(waiting[time]) == max(1, batch * longest // time):
            full.append((time, waiting[time]))
            waiting[time] = []
    full += [(time, left) for time, left in waiting.items() if left]
    if shuffled:
        random.shuffle(full)
    return full


def logits(model, made, batch):
    """Of a start and of an end at each position; -inf outside of the context, but for the first token."""
    length, chosen = batch
    ids, mask, types = (torch.zeros(len(chosen), length, dtype=torch.long) for _ in range(3))
    outside = torch.full((len(chosen), length), -torch.inf)
    for row, i in enumerate(chosen):
        window = made[i]
        ids[row, : len(window.tokens)] = torch.tensor(window.tokens)
        mask[row, : len(window.tokens)] = 1
        types[row, window.context[0] : len(window.tokens)] = 1
        outside[row, slice(*window.context)] = 0
        outside[row, 0] = 0
    found = model(input_ids=ids, attention_mask=mask, token_type_ids=types)
    return found.start_logits + outside, found.end_logits + outside


def normal(text, chinese):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    if chinese:
        text = re.sub(r"([\u4e00-\u9fff])", r" \1 ", "".join(c for c in text if c not in "，。、；：？！“”‘’（）《》·…—"))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(found, gold):
    common = sum((collections.Counter(found) & collections.Counter(gold)).values())
    if not found or not gold or not common:
        return float(found == gold)
    precision, recall = common / len(found), common / len(gold)
    return 2 * precision * recall / (precision + recall)


@torch.no_grad()
def evaluate(model, questions, made, arranged):
    model.eval()
    best = {}
    for batch in arranged:
        starts, ends = logits(model, made, batch)
        for row, i in enumerate(batch[1]):
            window, (low, high) = made[i], made[i].context
            pairs = starts[row, low:high, None] + ends[row, None, low:high]
            allowed = torch.ones_like(pairs).triu().tril(LONGEST_ANSWER - 1) > 0
            score, at = pairs.masked_fill(~allowed, -torch.inf).flatten().max(0)
            score = score.item() - (starts[row, 0] + ends[row, 0]).item()
            first, last = divmod(at.item(), high - low)
            if window.question not in best or score > best[window.question][0]:
                best[window.question] = score, window.characters[first][0], window.characters[last][1]
    model.train()
    chinese = 2 * sum(bool(re.search("[\u4e00-\u9fff]", row["context"])) for row in questions) > len(questions)
    exact = overlap = 0.0
    for number, row in enumerate(questions):
        _, begin, end = best[number]
        found = normal(row["context"][begin:end], chinese)
        golds = [normal(answer, chinese) for answer in row["answers"]]
        exact += max(float(found == gold) for gold in golds)
        overlap += max(f1(found, gold) for gold in golds)
    return {"exact_match": 100 * exact / len(questions), "f1": 100 * overlap / len(questions)}


def main():
    parser = argparse.ArgumentParser(description="fine-tune a BERT to answer questions in PyTorch")
    parser.add_argument("run", type=pathlib.Path, help="folder of a run of engine-train, for its config.toml")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, help="instead of the run's own")
    parser.add_argument("--steps", type=int, help="stop after so many updates, for timing")
    parser.add_argument("--skip-evaluation", action="store_true")
    o = parser.parse_args()

    config = tomllib.loads((o.run / "config.toml").read_text(encoding="utf-8"))
    m, d, t, adam, schedule = (config[name] for name in ("model", "data", "train", "optimizer", "schedule"))
    if schedule["kind"] != "linear" or schedule["min_factor"] != 0.0:
        parser.error("this script knows a linear decay to 0 only")
    torch.set_num_threads(o.threads)
    seed = t["seed"] if o.seed is None else o.seed
    torch.manual_seed(seed)
    random.seed(seed)
    tokenizer = Tokenizer.from_file(f"{m['initial']}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    longest = d.get("max_tokens", m["block"])
    load = lambda path: read(path) if isinstance(path, str) else [row for one in path for row in read(one)]
    arrange = lambda made, shuffled: batches(made, t["batch"], longest, d["buckets"], shuffled)
    made = windows(load(d["path"]), tokenizer, longest, d["stride"])
    rate = m["dropout"]
    model = BertForQuestionAnswering.from_pretrained(
        m["initial"], hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
    )
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": adam["weight_decay"]},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = adam["beta1"], adam["beta2"]
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=adam["epsilon"], fused=True)
    plan, steps, warmup = [], t["steps"], schedule["warmup"]
    while len(plan) < steps:
        plan += arrange(made, True)
    seconds, tokens = 0.0, 0
    model.train()
    for step, batch in enumerate(plan[: o.steps or steps]):
        factor = (step + 1) / (warmup + 1) if step < warmup else (steps - step) / (steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = adam["learning_rate"] * factor
        begun = time.perf_counter()
        starts, ends = logits(model, made, batch)
        wanted = torch.tensor([made[i].answer for i in batch[1]])
        loss = (F.cross_entropy(starts, wanted[:, 0]) + F.cross_entropy(ends, wanted[:, 1])) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if t["clip"] > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), t["clip"])
        optimizer.step()
        seconds += time.perf_counter() - begun
        tokens += sum(len(made[i].tokens) for i in batch[1])
        print(json.dumps({"step": step + 1, "loss": loss.item(), "tokens_per_second": tokens / seconds}), flush=True)
    last = {"steps": step + 1, "seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}
    if not o.skip_evaluation:
        questions = load(d["val_path"])
        dev = windows(questions, tokenizer, longest, d["stride"])
        last |= evaluate(model, questions, dev, arrange(dev, False))
    print(json.dumps(last), flush=True)


if __name__ == "__main__":
    main()
