"""This project's side: its program quantizes and scores, its example hashes tensors as a model reads them."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

EXPERIMENT = """
question = "Does this folder give the numbers that it gives elsewhere?"
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
[[evaluations]]
[evaluations.perplexity]
dataset = {{ text_file = {{ name = "text", path = "{text}", sha256 = "{sha256}", documents = "none" }} }}
protocol = {{ gptq = {{ seq_len = {seq_len} }} }}
max_windows = {n_windows}
"""


class Program:
    """The built program and example."""

    def __init__(self, folder: Path, work: Path):
        self.experiments, self.hash_tensors = folder / "experiments", folder / "examples" / "hash_tensors"
        self.work = work
        self.environment = os.environ | {"AWQ_CACHE": str(work / "cache"), "AWQ_CODES_GIB": "0"}
        self.n_runs = 0

    def quantize(self, model: Path, out: Path, case: list[str], text: Path) -> str:
        """Quantizes a model into a folder; an empty text, or what the program said against it."""
        command = [str(self.experiments), "quantize", str(model), "--out", str(out), "--quiet", *case]
        command += ["--calibration", str(text)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stderr.strip()

    def export(self, model: Path, out: Path, case: list[str], text: Path) -> str:
        """Writes a model in floats; an empty text, or what the program said against it."""
        command = [str(self.experiments), "export", str(model), "--out", str(out), "--quiet", *case, "--calibration", str(text)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stderr.strip()

    def generate(self, model: Path, prompt: str, n_new: int) -> str:
        """The likeliest continuation of a text, in f32, without the text."""
        command = [str(self.experiments), "generate", str(model), "--prompt", prompt, "--max-tokens", str(n_new), "--activations", "f32"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return done.stdout.removeprefix(prompt)

    def hashes(self, folder: Path) -> dict[str, str]:
        """sha256 of each tensor in f32."""
        done = subprocess.run([str(self.hash_tensors), str(folder)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return {name: sha256 for sha256, name in (line.split(" ", 1) for line in done.stdout.splitlines())}

    def perplexity(self, folder: Path, text: Path, seq_len: int, n_windows: int) -> float:
        """Of the first windows of a text, of the model as the folder has it."""
        self.n_runs += 1
        place = self.work / f"run-{self.n_runs}"
        place.mkdir()
        sha256 = hashlib.sha256(text.read_bytes()).hexdigest()
        settings = {"model": folder, "text": text, "sha256": sha256, "seq_len": seq_len, "n_windows": n_windows}
        (place / "experiment.toml").write_text(EXPERIMENT.format(**settings))
        command = [str(self.experiments), str(place / "experiment.toml"), "--out", str(place / "out"), "--quiet"]
        command += ["--only", "method=fp"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        records = place / "out" / "records.jsonl"
        if not records.exists():
            raise RuntimeError(done.stderr.strip())
        outcome = json.loads(records.read_text().splitlines()[0])["outcome"]
        if "done" not in outcome:
            raise RuntimeError(json.dumps(outcome))
        return outcome["done"]["measurements"][0]["value"]
