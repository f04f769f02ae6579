import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from tests.report.made import MAKER, made_results
from vtune_jax.errors import UserError
from vtune_jax.report.page import page, write_page
from vtune_jax.report.picture import save_picture
from vtune_jax.report.results import Results
from vtune_jax.report.terminal import render_table
from vtune_jax.report.words import table, verdict_sentence


def test_results_come_back_from_their_file(tmp_path):
    results = made_results()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is no results file"), ("[]", "is no results file"), ("{}", "has schema version None")],
)
def test_a_file_that_is_no_results_is_refused(tmp_path, content, message):
    path = tmp_path / "results.json"
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        Results.load(path)


def test_results_of_an_earlier_program_are_read(tmp_path):
    # Spelled by another writer: spaces, a first update without an order, and a key that came and went.
    results = made_results()
    results.save(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    del content["arms"]["static"]["updates"][0]["order"]
    content["arms"]["static"]["updates"][0]["gone"] = 1
    (tmp_path / "results.json").write_text(json.dumps(content, indent=1))
    assert Results.load(tmp_path / "results.json") == results


def test_a_results_file_that_lacks_something_says_what(tmp_path):
    (tmp_path / "results.json").write_text('{"schema_version": 3, "experiment": "x"}')
    with pytest.raises(UserError, match="is no results file .Results lacks 'domains'"):
        Results.load(tmp_path / "results.json")


def test_the_sentence_counts_the_domains_and_gives_both_directions():
    said = verdict_sentence(made_results())
    # Gains of 0.875 and 0.75 nats from an average of 5.15.
    assert "velocitune ended below static on 4 of 4 domains" in said
    assert "4.275 against 4.400 nats per token (-0.125)" in said
    assert "88% of the way to its target, against 75%" in said
    assert "'prose' moved by +0.200 against +0.200" in said
    worse = made_results(arms=("static", "velocitune"))
    arms = {
        name: dataclasses.replace(arm, final=worse.arms[other].final)
        for (name, arm), other in zip(worse.arms.items(), ("velocitune", "static"), strict=True)
    }
    assert "below static on 0 of 4 domains" in verdict_sentence(dataclasses.replace(worse, arms=arms))


def test_the_table_has_differences_to_the_control():
    header, rows = table(made_results(2))
    assert header[:6] == ["domain", "initial", "target", "velocitune", "static", "velocitune − static"]
    assert rows[0] == ["domain 0", "5.000", "4.000", "4.125", "4.250", "-0.125", "12%", "25%", "2.00", "2.00"]
    assert [row[0] for row in rows[2:]] == ["average", "prose (base)"]
    assert all(len(row) == len(header) for row in rows)


@pytest.mark.parametrize("arms", [("static",), ("velocitune",), ("velocitune", "other", "static")])
@pytest.mark.parametrize("domains", [2, 7, 50])
def test_any_number_of_arms_and_domains_makes_a_page(arms, domains):
    text = page(made_results(domains, arms))
    assert all(f"domain {index}" in text for index in range(domains))
    assert text.count('class="plotly-graph-div"') == 6


def test_the_page_opens_offline_and_stays_small(tmp_path):
    write_page(made_results(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r'<(script|link|img|iframe)[^>]*(src|href)="(https?:)?//', text)
    assert len(text) < 6e6
    assert not (tmp_path / "report.html.tmp").exists()


def test_names_are_escaped():
    text = page(made_results(2, experiment="<b>x</b>"))
    assert "<b>x</b>" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text


def cells(text, name):
    """The cells of the row of a table that begins with a name."""
    row = re.search(rf"<tr><td>{re.escape(name)}</td>.*?</tr>", text, re.DOTALL)
    return re.findall(r"<td>(.*?)</td>", row.group())


def test_the_corpus_table_has_dashes_for_a_domain_given_as_tokens():
    def entry(name, role, side, **counts):
        return {"name": name, "role": role, "train": side, "heldout": side, **counts}

    counted = entry("web", "base", {"documents": 12_345, "tokens": 7}, duplicates=2, skipped=0)
    text = page(made_results(2, corpus={"domains": [entry("given", "domain", {"tokens": 1_000}), counted]}))
    assert cells(text, "given") == ["given", "–", "1,000", "–", "1,000", "–", "–"]
    assert cells(text, "web (base)") == ["web (base)", "12,345", "7", "12,345", "7", "2", "0"]


def test_the_page_tells_targets_notes_and_facts():
    results = made_results(2)
    targets = dataclasses.replace(results.targets, lower=[None, 4.0], advice=["too <few> points", ""], notes=["a & b"])
    text = page(dataclasses.replace(results, targets=targets))
    assert cells(text, "domain 0") == [*table(results)[1][0]]
    assert "<td>5.000</td><td>4.000</td><td>– to 4.100</td><td>trustworthy</td><td>too &lt;few&gt; points</td>" in text
    assert "<li>a &amp; b</li>" in text
    assert "The proxies read 2,800 tokens,\n70% of one method's 4,000." in text
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert facts["static"] == "static()"
    assert facts["parameters"] == "1,000,000"
    assert facts["versions"] == "jax 1"
    assert facts["prior"] == "0.5, 0.5"
    assert facts["token budget"] == "4000"


def test_the_page_tells_which_stages_another_machine_or_version_has_made():
    results = made_results(2)
    other = dataclasses.replace(MAKER, versions={"jax": "2"})
    run = dataclasses.replace(results.run, made_by={"corpus": MAKER, "arm static": other, "arm a": other})
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page(dataclasses.replace(results, run=run))))
    assert facts["versions of corpus"] == "jax 1"
    assert facts["versions of arm static, arm a"] == "jax 2"
    assert facts["machine"] == MAKER.machine


def test_missing_values_become_dashes(tmp_path):
    results = made_results(2)
    bounds = {"target": [None, 4.1], "lower": [None, 4.0], "upper": [None, None]}
    targets = dataclasses.replace(results.targets, **bounds, law=None, curve=None)
    results = dataclasses.replace(results, targets=targets)
    results.arms["velocitune"].updates[2].heldout_loss[0] = None
    results.arms["velocitune"].final.heldout_loss[0] = None
    assert table(results)[1][0][2:4] == ["–", "–"]
    assert "NaN" not in json.dumps(table(results))
    page(results)
    save_picture(results, tmp_path / "x.png")


@pytest.mark.parametrize("arms", [("velocitune", "static"), ("static",)])
def test_the_picture_is_written(tmp_path, arms):
    save_picture(made_results(arms=arms), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_fits_its_console_with_every_figure_whole(width):
    stream, results = io.StringIO(), made_results(6)
    render_table(results, Console(file=stream, width=width))
    said = stream.getvalue()
    assert max(map(len, said.splitlines())) <= width
    _, rows = table(results)
    for row in rows:
        lines = " ".join(line for line in said.splitlines() if line.startswith(f" {row[0]} "))
        assert set(" ".join(row).split()) <= set(lines.split())
    assert "One seed is no evidence" in said
