"""Small seeded models, a tokenizer and a text, as transformers and tokenizers write them, and what transformers makes of them."""

import json
import math
import random
import shutil
from pathlib import Path

import torch
import transformers
from safetensors import torch as safetensors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

transformers.utils.logging.disable_progress_bar()

VOCABULARY = 320
SPECIAL_TOKENS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "opt": (transformers.OPTConfig, transformers.OPTForCausalLM),
}


def prose(n_words=3000, seed=1):
    """Sentences of made-up words, common ones more often."""
    draw = random.Random(seed)
    lexicon = ["".join(draw.choice("etaoinshrdlu") for _ in range(draw.randint(2, 6))) for _ in range(150)]
    weights = [1 / (rank + 1) for rank in range(len(lexicon))]
    words = []
    while len(words) < n_words:
        sentence = draw.choices(lexicon, weights, k=draw.randint(4, 11))
        words += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + draw.choice([".", "?", ".\n\n"])]
    return " ".join(words)


def tokenizer(prepends=None, special_tokens=SPECIAL_TOKENS):
    """Byte-level BPE trained on `prose`; `prepends` is put in front of a text by the post-processor."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([prose()], trainer)
    if prepends:
        made.post_processor = processors.TemplateProcessing(
            single=f"{prepends} $A", special_tokens=[(prepends, made.token_to_id(prepends))]
        )
    return made


def model(kind="llama", seed=0, **keys):
    """A model of random bf16 weights, large enough that every part of it shows in its perplexity."""
    keys = SIZES | keys
    if kind == "mistral":
        keys = {"sliding_window": None} | keys
    if kind == "opt":
        keys["ffn_dim"] = keys.pop("intermediate_size")
        keys = {"word_embed_proj_dim": keys["hidden_size"], "pad_token_id": 1} | keys
        del keys["rms_norm_eps"], keys["num_key_value_heads"]
    configuration, classes = CLASSES[kind]
    made = classes(configuration(**keys)).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            if "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            elif weight.dim() == 1 or "embed" in name:
                noise = 0.35 * noise
            else:
                noise = 1.5 * noise / weight.shape[1] ** 0.5
            weight.copy_(noise.bfloat16())
    return made


def write(made, folder, tokens=None, keys=None, tensors=None):
    """Writes a folder as transformers does; `keys` and `tensors` are functions from what is there to what is written."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Saved as bf16 by a copy: `to` would round the rotary frequencies of the model itself.
    state = {name: weight.bfloat16().contiguous() for name, weight in made.state_dict().items()}
    if made.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    made.config.architectures = [type(made).__name__]
    made.config.save_pretrained(folder)
    if tensors:
        state = tensors(state)
    safetensors.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if keys:
        edit_json(folder / "config.json", keys)
    (tokens or tokenizer()).save(str(folder / "tokenizer.json"))
    return folder


def edit_json(file, edit):
    """Replaces the object in `file` by what `edit` makes of it."""
    file.write_text(json.dumps(edit(json.loads(file.read_text())), indent=2))


def read_by_transformers(folder):
    """What transformers makes of a folder, in f32."""
    read = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return read.eval()


@torch.no_grad()
def perplexity(made, ids, length=64, first_target=1, first_token=None, max_windows=None):
    """Non-overlapping windows of `length` ids, those from `first_target` on scored, the mean of the windows' means."""
    means = []
    for start in range(0, len(ids) - length + 1, length)[:max_windows]:
        window = torch.tensor([ids[start : start + length]])
        if first_token is not None:
            window[0, 0] = first_token
        scores = torch.log_softmax(made(window).logits[0].double(), -1)[first_target - 1 : -1]
        means.append(-scores.gather(1, window[0, first_target:, None]).mean().item())
    return math.exp(sum(means) / len(means))
