"""Encodes texts with a Hugging Face encoder, for our tests to compare with.

    python tests/goldens/encode_with_transformers.py FOLDER TEXTS.jsonl MAX_TOKENS OUT.safetensors

Each line of TEXTS.jsonl is a JSON string. Called by tests/minilm_parity.rs. For text number n the result holds:

    ids.n (T) i64         with [CLS] and [SEP], cut to MAX_TOKENS
    hidden.n (T, C)       the last block's result
    mean.n (C)            its mean over the tokens, as sentence-transformers pools

All in one process, one text at a time, so that nothing here depends on padding.
"""

import json
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import BertModel

folder, texts, most, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.no_padding()
tokenizer.enable_truncation(most)
model = BertModel.from_pretrained(folder).eval()
found = {}
with torch.no_grad(), open(texts, encoding="utf-8") as lines:
    for number, line in enumerate(lines):
        ids = torch.tensor([tokenizer.encode(json.loads(line)).ids])
        hidden = model(ids).last_hidden_state[0]
        found[f"ids.{number}"] = ids[0].contiguous()
        found[f"hidden.{number}"] = hidden.contiguous()
        found[f"mean.{number}"] = hidden.mean(0)
save_file(found, out)
