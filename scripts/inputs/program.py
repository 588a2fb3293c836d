"""Runs the program on an input: what it scores, or what it says."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

METHODS = {
    "rtn": "rtn = {}",
    "gptq": 'gptq = { damp = 0.01, block_size = 128, order = "natural", group_grid = "updated_weights", '
    'range = "min_max", hessian = "f64" }',
    "awq": 'awq = { scale = { search = { formula = "activation", n_ratios = 20 } }, '
    "clip = { search = { n_steps = 20, max_shrink = 0.5, n_tokens = 512 } } }",
}


class Program:
    """One built program, and a folder for what it writes."""

    def __init__(self, binary, folder):
        self.binary, self.folder = Path(binary).resolve(), folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments, answer=None):
        """Exit status, what it printed, what it said."""
        command = [self.binary, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, input=answer, timeout=300)
        return done.returncode, done.stdout, done.stderr

    def records(self, model, text, methods=("rtn",), protocol="gptq", length=64, documents="none", calibration=None,
                sampling="random_crops = { n_sequences = 8, seed = 0 }", max_windows=None, calibration_length=32,
                scale_dtype="f16", fresh=True):
        """Runs an experiment; its records by method, full precision under `FP`, and what was said."""
        out = self.folder / "experiment"
        if fresh:
            shutil.rmtree(out, ignore_errors=True)
        data = lambda file, name: (
            f'{{ text_file = {{ name = "{name}", path = "{file}", sha256 = "{sha256(file)}", documents = "{documents}" }} }}'
        )
        key = {"gptq": f"gptq = {{ seq_len = {length} }}", "llama-cpp": f"llama-cpp = {{ chunk_len = {length} }}"}[protocol]
        entries = "".join(f"[[methods]]\n{METHODS[method]}\n" for method in methods)
        limit = f"max_windows = {max_windows}\n" if max_windows else ""
        spec = self.folder / "experiment.toml"
        spec.write_text(
            f"""question = "Does it load and score?"
[run]
device = "flex"
[[models]]
name = "small"
source = {{ path = {{ path = "{model}" }} }}
[calibration]
dataset = {data(calibration or text, "calibration")}
sampling = {{ {sampling} }}
seq_len = {calibration_length}
propagation = "full_precision"
[grids]
bits = [4]
granularity = [{{ per_group = 32 }}]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "{scale_dtype}"
{entries}
[[evaluations]]
[evaluations.perplexity]
dataset = {data(text, "text")}
protocol = {{ {key} }}
{limit}"""
        )
        _, _, said = self.run(spec, "--out", out, "--threads", 1)
        file = out / "records.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        of = lambda row: next(iter((row["cell"]["quantization"] or {"method": {"FP": 0}})["method"]))
        return {of(row): row for row in rows}, said

    def score(self, model, text, **options):
        """The perplexity at full precision, or the error."""
        records, said = self.records(model, text, **options)
        return outcome(records["FP"]) if "FP" in records else last_line(said)


def outcome(record):
    """The perplexity of a record, or its error."""
    ended = record["outcome"]
    return ended["done"]["measurements"][0]["value"] if "done" in ended else ended["failed"]["error"]


def last_line(said):
    """The error that a program ended with."""
    return re.sub(r"\s+", " ", said.strip())[-400:]


def sha256(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
