"""A model handed on and taken in again: `export`, `import`, and an experiment that begins from it."""

import json
import math

import numpy as np
import pytest

from tests.stages.experiment import write_experiment
from vtune_jax.cli import main as cli
from vtune_jax.experiment.load import load
from vtune_jax.report.results import Results
from vtune_jax.stages.run_folder import with_results


def invoked(capsys, *arguments):
    code = cli.invoke([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def ran(capsys, config, *overrides, run):
    options = ["--quiet", "--run-folder", run, 'arms=[{name="static"}]', *overrides]
    code, _, err = invoked(capsys, "run", config, *options)
    assert code == 0, err
    return Results.load(with_results(run)[-1] / "results.json")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run, and its arm's model as a folder."""
    folder = tmp_path_factory.mktemp("exported")
    config, run = write_experiment(folder), folder / "run"
    options = ["--quiet", "--run-folder", str(run), 'arms=[{name="static"}]', "train.steps=10"]
    assert cli.invoke(["run", str(config), *options]) == 0
    assert cli.invoke(["export", str(run), "static", str(folder / "model")]) == 0
    return folder, config, run


def test_an_experiment_begins_where_an_exported_model_ended(exported, tmp_path, capsys):
    folder, config, run = exported
    before = Results.load(with_results(run)[-1] / "results.json")
    shapes = [f"model.{name}={value}" for name, value in (("layers", 4), ("width", 128), ("heads", 4), ("hidden", 352))]
    shapes += ["model.key_value_heads=2"]
    place = f"pretrain.from_checkpoint={json.dumps(str(folder / 'model'))}"
    still = ("train.optimizer.peak_learning_rate=1e-30", "train.steps=10", 'corpus.tokenizer.end_of_text=""')
    # The file's own [model] is another's: it is refused by name, and nothing is computed.
    code, _, err = invoked(capsys, "run", config, place, "model.layers=2", "--run-folder", tmp_path / "no")
    assert code == 2
    assert "[model] is not that of" in err
    assert "layers = 2 (the checkpoint: 1)" in err

    after = ran(capsys, config, place, *shapes, *still, run=tmp_path / "run")
    initial = after.arms["static"].updates[0].heldout_loss
    np.testing.assert_allclose(initial, before.arms["static"].final.heldout_loss, rtol=1e-6)
    # At no learning rate nothing moves.
    np.testing.assert_allclose(after.arms["static"].final.heldout_loss, initial, rtol=1e-6)
    resolved = next((tmp_path / "run").glob("*/config.toml"))
    assert load(resolved).model.layers == 1
    assert load(resolved).corpus.tokenizer.file.endswith("tokenizer.json")


def test_a_checkpoint_is_looked_at_and_measured(exported, tmp_path, capsys):
    folder = exported[0]
    text = tmp_path / "text.txt"
    text.write_text("abc 012 " * 40)
    code, out, _ = invoked(capsys, "import", folder / "model", "--check", "--text", text, "--json")
    said = json.loads(out)
    assert code == 0
    assert (said["family"], said["parameters"], said["stored"]) == ("llama", 300 * 16 + 16 + 1952, "float32")
    assert said["bits_per_byte"] == pytest.approx(
        said["nats_per_token"] * said["tokens"] / math.log(2) / (320 - first_bytes(folder, text))
    )
    assert said["perplexity"] == pytest.approx(math.exp(said["nats_per_token"]))
    code, out, _ = invoked(capsys, "import", folder / "model", "--check", "--text", text, "--sequence", "8")
    assert code == 0
    assert "llama, 6,768 parameters, stored as float32" in out
    assert "bits per byte" in out


def first_bytes(folder, text):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "model" / "tokenizer.json")).encode(text.read_text()).offsets[0][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("export", "{run}", "velocitune", "{new}"),
            "holds no finished arm 'velocitune'. Fix: give one of static, base",
        ),
        (("export", "{new}", "static", "{new}"), "is no folder of a run"),
        (("export", "{run}", "static", "{model}"), "holds something already"),
        (("import", "{new}", "--check"), "there is no .*config.json"),
        (("import", "{model}", "--check", "--text", "{new}"), "cannot read .*new"),
        (("import", "{model}", "--check", "--sequence", "0"), "--sequence must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(exported, tmp_path, capsys, arguments, message):
    folder, _, run = exported
    places = {"run": run, "new": tmp_path / "new", "model": folder / "model"}
    code, _, err = invoked(capsys, *(word.format(**places) for word in arguments))
    assert code == 2
    assert err.count("\n") == 1
    import re

    assert re.search(message, err)


def test_the_base_model_is_exported_by_its_name(exported, tmp_path, capsys):
    code, out, _ = invoked(capsys, "export", exported[2], "base", tmp_path / "base", "--dtype", "bfloat16")
    assert code == 0
    assert "family llama" in out
    code, out, _ = invoked(capsys, "import", tmp_path / "base", "--check")
    assert "stored as bfloat16" in out
