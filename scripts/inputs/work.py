"""`quantize`, scales that a type cannot hold, a model that is replaced, a device that is not there."""

import shutil

import torch

from .models import model, perplexity, read_by_transformers, write
from .rows import Row, Says


def rows(program, folder, text, ids):
    """`ids` are those of `text`."""
    quantize = ["--method", "rtn", "--bits", 4, "--group-size", 32, "--quiet"]

    def written(path, name, *more):
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        status, _, said = program.run("quantize", path, *quantize, "--out", out, *more)
        return "written" if status == 0 else said.strip()[-400:]

    buffer = {"model.embed_positions.position_ids": torch.arange(512)}
    buffered = write(model(), folder / "buffered", tensors=lambda state: state | buffer)
    yield Row("`quantize` of a folder with an int64 buffer", "written", "must work", lambda: written(buffered, "q-buffer"))

    def huge(state):
        up, down = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down"))
        wide = state[up].clone()
        wide[3, 4] = 2e6
        return state | {up: wide, down: state[down] * 1e-4}

    beyond = write(model(), folder / "beyond", tensors=huge)
    right = perplexity(read_by_transformers(beyond), ids)
    yield Row("a weight of 2e6, full precision", right, "transformers", lambda: program.score(beyond, text))
    says = Says("scale_dtype", "f32", "up_proj")

    def cell():
        records, said = program.records(beyond, text, methods=("rtn",))
        ended = records["rtn"]["outcome"] if "rtn" in records else {"failed": {"error": said}}
        return ended["failed"]["error"] if "failed" in ended else "a number"

    yield Row("its scale is beyond f16: an experiment's cell", says, "must be named", cell)
    yield Row("its scale is beyond f16: `quantize`", says, "must be named", lambda: written(beyond, "q-beyond"))

    def retry():
        out = folder / "q-retry"
        shutil.rmtree(out, ignore_errors=True)
        program.run("quantize", beyond, *quantize, "--out", out)
        status, _, said = program.run("quantize", buffered, *quantize, "--out", out)
        return "written" if status == 0 else said.strip()[-300:]

    yield Row("`quantize` again into the folder where it failed", "written", "must work", retry)

    def replaced():
        path = write(model(), folder / "replaced")
        program.records(path, text)
        write(model(seed=1), path)
        records, _ = program.records(path, text, fresh=False)
        return records["FP"]["outcome"]["done"]["measurements"][0]["value"]

    yield Row("a model that was replaced in its folder", perplexity(model(seed=1), ids), "the model", replaced)

    def planned():
        program.records(write(model(), folder / "planned"), text)
        spec = program.folder / "experiment.toml"
        spec.write_text(spec.read_text().replace('"flex"', '"flx"'))
        status, _, said = program.run("plan", spec)
        return said.strip()[-300:] if status else "no error"

    yield Row("`plan` of a device that is misspelled", Says("flx", "flex"), "must be named", planned)
