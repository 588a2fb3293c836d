#!/usr/bin/env python3
"""Protocol `lm-eval` beside lm-eval itself: the log-likelihood of each article of WikiText-2, and word, byte and bits-per-byte numbers.

    pip install "lm-eval[hf]==0.4.13" torch==2.15.0 transformers==5.24.0
    cargo build -p experiments
    scripts/compare-lm-eval.py MODEL wiki.test.raw [--max-len 512] [--documents 62]

MODEL is a folder in Hugging Face layout. It is scored with a tokenizer that has a BOS and adds none, and with one that puts it in
front of a text, with and without that BOS scored. Prints a Markdown table; the exit code is 1 where a document differs by more than 1e-4 of its log-likelihood.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
CONFIG = """
question = "Does protocol lm-eval give lm-eval's numbers?"
methods = [{{ rtn = {{}} }}]
[run]
device = "flex"
[[models]]
name = "model"
source = {{ path = {{ path = "{model}" }} }}
[grids]
bits = [8]
granularity = ["per_channel"]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f32"
"""
EVALUATION = """
[[evaluations]]
[evaluations.{metric}]
dataset = {{ wikitext2 = {{ split = "test" }} }}
protocol = {{ lm-eval = {{ max_len = {max_len}, scores_bos = {scores_bos} }} }}
max_windows = {documents}
"""
METRICS = ["word_perplexity", "byte_perplexity", "bits_per_byte"]


def with_bos(model: Path, folder: Path, adds: bool) -> Path:
    """The model with a tokenizer that names a BOS token, and puts it in front of every text if it `adds` one."""
    shutil.copytree(model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) if config_file.exists() else {}
    bos = config.get("bos_token") or tokenizer["added_tokens"][0]["content"]
    token = bos if isinstance(bos, str) else bos["content"]
    ids = {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
    piece = {"SpecialToken": {"id": token, "type_id": 0}}
    if adds:
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]}},
        }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config_file.write_text(json.dumps(config | {"bos_token": token}))
    return folder


def pages(raw: str, lm_eval_preprocess) -> list[tuple[str, int, int]]:
    """What lm-eval scores of each article of the data set `EleutherAI/wikitext_document_level`, its words and bytes."""
    articles, lines = [], []
    for line in raw.split("\n"):
        title = line.replace("= = =", "===").replace("= =", "==").strip()
        if title.startswith("= ") and title.endswith(" ="):
            articles.append("\n".join(lines))
            lines = []
        lines.append(line)
    articles.append("\n".join(lines))
    documents = [{"page": article} for article in articles if article.strip()]
    counts = [lm_eval_preprocess.process_results(document, (0.0,)) for document in documents]
    return [
        (lm_eval_preprocess.wikitext_detokenizer(document), count["word_perplexity"][1], count["byte_perplexity"][1])
        for document, count in zip(documents, counts)
    ]


def theirs(model: Path, documents: list[tuple[str, int, int]], max_len: int, add_bos_token: bool | None) -> list[float]:
    import logging

    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(model), dtype="float32", device="cpu", max_length=max_len, add_bos_token=add_bos_token)
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=index)
        for index, (text, _, _) in enumerate(documents)
    ]
    logging.disable(logging.WARNING)
    # It shows a bar of progress for each document.
    with contextlib.redirect_stderr(io.StringIO()):
        return lm.loglikelihood_rolling(requests, disable_tqdm=True)


def ours(program: Path, model: Path, raw: Path, documents: int, max_len: int, scores_bos: bool, folder: Path) -> dict:
    config = folder / "experiment.toml"
    evaluation = {"max_len": max_len, "scores_bos": str(scores_bos).lower(), "documents": documents}
    config.write_text(CONFIG.format(model=model) + "".join(EVALUATION.format(metric=m, **evaluation) for m in METRICS))
    out = folder / "out"
    command = [str(program), str(config), "--out", str(out), "--assets", str(raw.parent), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    base = next(record for record in records if record["cell"].get("quantization") is None)
    return {m["metric"]: m for m in base["outcome"]["done"]["measurements"]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("raw", type=Path)
    arguments.add_argument("--max-len", type=int, default=512)
    arguments.add_argument("--documents", type=int, default=62)
    arguments.add_argument("--program", type=Path, default=ROOT / "target/debug/experiments")
    arguments = arguments.parse_args()
    from lm_eval.tasks.wikitext import preprocess_wikitext

    raw = arguments.raw.read_bytes()
    if hashlib.sha256(raw).hexdigest() != SHA256:
        sys.exit(f"{arguments.raw}: not wiki.test.raw of WikiText-2 (sha256 {SHA256})")
    all_pages = pages(raw.decode(), preprocess_wikitext)
    scored = all_pages[: arguments.documents]
    print(f"{len(all_pages)} articles, {sum(words for _, words, _ in all_pages):,} words; {len(scored)} scored\n")
    print("| tokenizer | BOS scored | word perplexity: lm-eval | here | byte perplexity: lm-eval | here | largest difference of a document |")
    print("|---|---|--:|--:|--:|--:|--:|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        model = arguments.model.resolve()
        names, adds = (with_bos(model, Path(temporary) / name, name == "adds") for name in ("names", "adds"))
        cases = [
            ("has a BOS, adds none", names, True, None),
            ("puts BOS in front", adds, True, None),
            ("puts BOS in front", adds, False, False),
        ]
        for index, (name, model, scores_bos, add_bos_token) in enumerate(cases):
            folder = Path(temporary) / f"run-{index}"
            folder.mkdir()
            log_likelihoods = theirs(model, scored, arguments.max_len, add_bos_token)
            found = ours(arguments.program, model, arguments.raw, len(scored), arguments.max_len, scores_bos, folder)
            of_word, of_byte = found["word_perplexity"], found["byte_perplexity"]
            own = [-sample * weight for sample, weight in zip(of_word["samples"], of_word["weights"])]
            difference = max(abs(a / b - 1.0) for a, b in zip(own, log_likelihoods))
            total = -sum(log_likelihoods)
            expected_word = math.exp(total / sum(words for _, words, _ in scored))
            expected_byte = math.exp(total / sum(n_bytes for _, _, n_bytes in scored))
            expected_bits = total / sum(n_bytes for _, _, n_bytes in scored) / math.log(2)
            worst = max(worst, difference, abs(of_word["value"] / expected_word - 1), abs(of_byte["value"] / expected_byte - 1))
            worst = max(worst, abs(found["bits_per_byte"]["value"] / expected_bits - 1))
            print(
                f"| {name} | {'yes' if scores_bos and model == adds else 'no'} | {expected_word:,.3f} | {of_word['value']:,.3f} "
                f"| {expected_byte:.5f} | {of_byte['value']:.5f} | {difference:.1e} |"
            )
    if worst > 1e-4:
        sys.exit(f"differs by {worst:.1e}")


if __name__ == "__main__":
    main()
