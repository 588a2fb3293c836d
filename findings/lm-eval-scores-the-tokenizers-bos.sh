#!/usr/bin/env bash
# lm-eval 0.4.13 with transformers 5.24.0, torch 2.15.0, CPU.
# Expected: where a tokenizer puts BOS in front of a text, lm-eval's rolling log-likelihood (its perplexities of WikiText) takes that BOS
# as the prefix that the first token is predicted from. Instead it puts its own prefix token, the same BOS, in front of it, and scores
# the tokenizer's BOS as the first token of the text. So a perplexity of such a model holds one unlikely token a document that a
# perplexity of a model without BOS does not hold, and no other program's number is the same. (For Gemma: lm-eval's issue 3333.)
# Seen: for the text "a b c" the scored tokens are BOS a b c, behind BOS; with add_bos_token=False they are a b c, behind BOS.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "lm-eval[hf]==0.4.13" torch==2.15.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/model" <<'PYTHON'
import sys
from types import SimpleNamespace

from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder, vocabulary = sys.argv[1], {"<bos>": 0, "a": 1, "b": 2, "c": 3}
inner = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>").save_pretrained(folder)
config = LlamaConfig(vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                     max_position_embeddings=16, bos_token_id=0, eos_token_id=None)
LlamaForCausalLM(config).save_pretrained(folder)


def scored(**settings):
    """Context and scored tokens of the first window."""
    lm = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1, **settings)
    seen = []
    own = lm._loglikelihood_tokens
    lm._loglikelihood_tokens = lambda requests, **more: (seen.extend(requests), own(requests, **more))[1]
    lm.loglikelihood_rolling([SimpleNamespace(args=("a b c",))], disable_tqdm=True)
    return list(seen[0][1]), list(seen[0][2])


as_it_is, without = scored(), scored(add_bos_token=False)
print(f"context and scored tokens: {as_it_is} as the tokenizer has it, {without} with add_bos_token=False")
assert as_it_is == ([0], [0, 1, 2, 3]), "the tokenizer's BOS is not scored now"
assert without == ([0], [1, 2, 3]), "without it, the prefix is another now"
PYTHON
