"""Loads a model folder as `transformers` does and prints its logits' distance from a golden, as JSON.

    python tests/goldens/check_export.py FOLDER GOLDEN.safetensors

Called by our tests on folders that we wrote; config.json names the class. `surprises` lists the tensors that were
missing, unexpected or of another shape: there must be none.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import load_file

folder, golden = sys.argv[1], load_file(sys.argv[2])
with open(f"{folder}/config.json", encoding="utf-8") as file:
    (architecture,) = json.load(file)["architectures"]
model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
surprises = [f"{kind}: {name}" for kind, names in info.items() if kind.endswith("keys") for name in names]
inputs, is_token = {"input_ids": golden["inputs"]}, None
if "lengths" in golden:
    is_token = torch.arange(golden["inputs"].shape[1]) < golden["lengths"][:, None]
    inputs |= {"attention_mask": is_token.long(), "token_type_ids": golden["types"]}
with torch.no_grad():
    outputs = model.eval()(**inputs)
if architecture == "BertForQuestionAnswering":
    logits = torch.stack([outputs.start_logits, outputs.end_logits], -1)
else:
    logits = outputs.logits
if is_token is not None and logits.ndim == 3:
    logits = logits * is_token[..., None]
error = (logits - golden["f32.logits"]).norm() / golden["f32.logits"].norm()
print(json.dumps({"relative_error": error.item(), "surprises": surprises}))
