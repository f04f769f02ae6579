"""Every option of the mixture through the whole pipeline: config to trained arms."""

import json

import numpy as np
import pytest

from vtune_jax.cli.plan_table import render_plan
from vtune_jax.data.tokens.rows import BlockRows
from vtune_jax.errors import UserError
from vtune_jax.experiment.load import load
from vtune_jax.machine.progress import Progress
from vtune_jax.stages.pipeline import Pipeline

QUICK = ("targets.losses=[1.0, 2.0, 1.5]", "pretrain.steps=5")


@pytest.fixture
def path(small):
    return small


@pytest.fixture(autouse=True)
def shared(store):
    """All of these runs find the stages that they have in common."""
    STORE.clear()
    STORE.append(store)


STORE = []


class Said(Progress):
    def __init__(self):
        super().__init__(silent=True)
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def made(path, folder, *overrides, **options):
    said = Said()
    chosen = {"store": STORE[0], **options}
    return Pipeline(load(path, (*QUICK, *overrides)), folder, said, **chosen), said


def updates(pipeline, arm="velocitune"):
    return pipeline.train(arm).updates


def arm_folder(pipeline, arm="velocitune"):
    return pipeline.train(arm).stage.folder


def orders(pipeline):
    return [row["order"] for row in updates(pipeline)]


def test_shards_workers_and_blocks_of_files_train_the_same_model(path, tmp_path):
    block = "data.block_rows=8"
    shards = ("corpus.storage=array_record", block, "corpus.shard_tokens=32768")
    plain, _ = made(path, tmp_path / "files", block)
    records, _ = made(path, tmp_path / "shards", *shards)
    threads, _ = made(path, tmp_path / "threads", *shards, "data.workers=2", "mixture.lag=0")
    assert all(
        isinstance(store, BlockRows) for store in (*plain.corpus().domains.stores, *records.corpus().domains.stores)
    )
    assert updates(plain) == updates(records) == updates(threads)
    row_by_row, _ = made(path, tmp_path / "rows")
    assert orders(row_by_row) != orders(plain)


def test_the_number_of_workers_is_no_part_of_a_stage(path, tmp_path):
    one, _ = made(path, tmp_path / "run")
    folder = one.train("static").stage.folder
    two, _ = made(path, tmp_path / "run", "data.workers=1", "data.patience_seconds=3.0")
    assert two.train("static").stage.folder == folder


def test_packed_documents_train_and_are_counted_token_by_token(path, tmp_path):
    packed, _ = made(path, tmp_path / "run", "data.packing=best_fit", "data.sequence=32")
    read = updates(packed)
    budget = 30 * 4 * 32
    assert 0.5 * budget < sum(read[-1]["tokens_read"]) < budget
    assert packed.corpus().domains.heldout["segments"].shape == (3, 6, 32)
    losses = [row["loss"] for row in packed.train("static").steps]
    assert losses[-1] < losses[0]
    device, _ = made(path, tmp_path / "device", "data.packing=best_fit", "data.sequence=32", "data.engine=device")
    assert [row["tokens_read"] for row in updates(device)] == [row["tokens_read"] for row in read]
    with pytest.raises(UserError, match="best-fit packing looks at all tokens of a domain"):
        made(path, tmp_path / "no", "data.packing=best_fit", "corpus.storage=array_record")[0].corpus()


@pytest.mark.parametrize("allocation", ["multinomial", "deficit"])
def test_other_allocations_read_other_rows(path, tmp_path, allocation):
    default, _ = made(path, tmp_path / "default")
    other, _ = made(path, tmp_path / "other", f"mixture.allocation={allocation}")
    assert orders(default)[-1] != orders(other)[-1]


def test_a_lag_trains_on_other_batches_from_the_first_update_on(path, tmp_path):
    fast = "arms.velocitune.step_size=8.0"
    exact, _ = made(path, tmp_path / "exact", fast)
    late, _ = made(path, tmp_path / "late", fast, "mixture.lag=3")
    assert orders(exact)[0] == orders(late)[0]
    assert orders(exact)[-1] != orders(late)[-1]


def test_a_capped_domain_gives_its_share_away_and_the_plan_says_when(path, tmp_path, capsys):
    capped = ("corpus.domains.digits.exhaustion=cap", "corpus.domains.digits.max_epochs=0.1")
    pipeline, _ = made(path, tmp_path / "run", *capped)
    rows = int(pipeline.corpus().domains.rows[1])
    from rich.console import Console

    render_plan(pipeline.project(), Console(width=200), duration=False)
    assert "'digits' reaches its limit of 0.1 epochs after" in capsys.readouterr().out
    assert updates(pipeline)[-1]["tokens_read"][1] == round(0.1 * rows) * 16
    assert updates(pipeline)[-1]["weights"][1] == 0
    # The limit is no part of the corpus: it is not prepared again.
    assert pipeline.prepare().folder.name == made(path, tmp_path / "run")[0].prepare().folder.name


def test_a_domain_that_stops_the_run_ends_every_arm_and_the_report_is_made(path, tmp_path):
    stop = ("corpus.domains.digits.exhaustion=stop", "corpus.domains.digits.max_epochs=0.1")
    pipeline, said = made(path, tmp_path / "run", *stop)
    results = pipeline.report()
    assert all(0 < len(arm.train) < 30 for arm in results.arms.values())
    assert sum("is set to stop the run" in note for note in said.notes) == 2


def test_limits_that_leave_too_few_rows_are_refused_before_anything_is_trained(path, tmp_path):
    names = ("letters", "digits", "mixed")
    few = [f"corpus.domains.{name}.{field}" for name in names for field in ("exhaustion=cap", "max_epochs=0.1")]
    pipeline, _ = made(path, tmp_path / "run", *few)
    with pytest.raises(UserError, match=r"train.steps = 30 reads 120 rows, and the domains may give \d+"):
        pipeline.pretrain()


def test_unimax_is_a_prior_and_says_what_it_cannot_spend(path, tmp_path):
    even, said = made(path, tmp_path / "even", "mixture.unimax_epochs=4.0")
    np.testing.assert_allclose(even.corpus().prior, 1 / 3)
    assert not said.notes
    scarce, said = made(path, tmp_path / "scarce", "mixture.unimax_epochs=0.05")
    assert scarce.corpus().prior.sum() == pytest.approx(1)
    assert "cannot be spent within 0.05 epochs" in said.notes[0]


def test_an_arm_goes_on_from_its_state_on_other_data_only_if_asked(path, tmp_path):
    first, _ = made(path, tmp_path / "run")
    before = updates(first)
    base = f'pretrain.from_run="{tmp_path / "run"}"'
    tokenizer = f'corpus.tokenizer.file="{first.prepare().folder / "tokenizer.json"}"'
    lines = (path.parent / "digits.jsonl").read_text().splitlines()

    def change(count):
        fewer = tmp_path / f"fewer{count}.jsonl"
        fewer.write_text("\n".join(lines[:count]) + "\n")
        return base, tokenizer, f'corpus.domains.digits.source="{fewer}"'

    fresh, said = made(path, tmp_path / "run", *change(40))
    assert updates(fresh)[0]["order"] != before[0]["order"]
    assert not said.notes
    taken, said = made(path, tmp_path / "run", *change(50), allow_data_change=True)
    assert len(updates(taken)) == len(before)
    assert any("goes on from step 30 on other data: rows was" in note for note in said.notes)
    again, _ = made(path, tmp_path / "run", *change(50), allow_data_change=True)
    assert arm_folder(again) == arm_folder(taken)
    # Whoever did not ask for it, in this run or another, does not get an arm of other data.
    for run in ("run", "another"):
        plain, _ = made(path, tmp_path / run, *change(50))
        assert arm_folder(plain) != arm_folder(taken)
        assert updates(plain)[0]["order"] != before[0]["order"]


def test_a_corpus_that_changes_in_place_is_told_and_an_arm_goes_on_if_asked(path, tmp_path):
    first, _ = made(path, tmp_path / "first")
    first.pretrain()
    tokenizer = f'corpus.tokenizer.file="{first.prepare().folder / "tokenizer.json"}"'
    lines, grown = (path.parent / "digits.jsonl").read_text().splitlines(), tmp_path / "grown.jsonl"
    options = (f'pretrain.from_run="{tmp_path / "first"}"', tokenizer, f'corpus.domains.digits.source="{grown}"')

    def of(count, **more):
        grown.write_text("\n".join(lines[:count]) + "\n")
        pipeline, said = made(path, tmp_path / "run", *options, **more)
        pipeline.train("velocitune")  # before the corpus changes again
        return pipeline, said

    begun, said = of(41)
    assert not any("have changed since" in note for note in said.notes)
    taken, said = of(51, allow_data_change=True)
    assert any("the inputs of 'corpus' have changed since" in note for note in said.notes)
    assert any("goes on from step 30 on other data: rows was" in note for note in said.notes)
    assert updates(taken)[0]["order"] == updates(begun)[0]["order"]
    again, said = of(51, allow_data_change=True)
    assert arm_folder(again) == arm_folder(taken)
    assert not any("have changed since" in note for note in said.notes)
    plain, _ = of(51)
    assert updates(plain)[0]["order"] != updates(begun)[0]["order"]


def test_a_method_is_given_the_sizes_that_it_needs(path, tmp_path):
    pipeline, _ = made(path, tmp_path / "run", 'arms=[{name="group_dro", form="cvar", floor=0.05}]')
    tokens = pipeline.corpus().tokens.tolist()
    rows = updates(pipeline, "group_dro")
    shares = np.array(tokens) / sum(tokens)
    # Whatever is worst, its share of the worst fifth of the data follows from its size.
    worst = np.argmax(rows[0]["train_loss"])
    expected = 0.05 + (1 - 0.05 * len(tokens)) * min(1.0, shares[worst] / 0.2)
    assert rows[0]["weights"][worst] == pytest.approx(expected, rel=1e-3)


def test_the_config_of_every_option_is_written_and_read_back(path, tmp_path):
    options = (
        "data.packing=best_fit",
        "data.worker_kind=processes",
        "mixture.lag=3",
        "corpus.domains.digits.exhaustion=drop",
        "corpus.storage=array_record",
    )
    pipeline, _ = made(path, tmp_path / "run", *options)
    assert load(tmp_path / "run" / "latest" / "config.toml") == pipeline.config
    assert json.loads((tmp_path / "run" / "experiment.json").read_text())["name"] == "small"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixture.lag=5", r"lag must lie in \[0, interval = 5\), got 5"),
        ("mixture.unimax_epochs=-1.0", "unimax_epochs must not be negative"),
        ("data.workers=-1", "workers must not be negative"),
        ("corpus.domains.digits.exhaustion=cap", "max_epochs must be positive"),
        ("corpus.base.exhaustion=drop", "base.exhaustion must be left out"),
        ("data.packing=first_fit", "packing"),
    ],
)
def test_impossible_options_are_refused(path, override, message):
    with pytest.raises(UserError, match=message):
        load(path, (override,))
