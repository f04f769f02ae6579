"""The report as one HTML file that opens offline."""

from html import escape
from pathlib import Path
from typing import Any

from vtune_jax.machine.files import write_whole
from vtune_jax.report.results import Results, number, table, verdict_sentence

_STYLE = """
:root { --ink: #22262b; --soft: #5c6670; --line: #e3e7eb; --card: #ffffff; --page: #f6f7f9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 Inter, system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 30px; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 0 0 4px; }
p { margin: 6px 0 12px; max-width: 76ch; }
.soft { color: var(--soft); font-size: 15px; }
.verdict { font-size: 18px; border-left: 4px solid var(--accent); padding: 4px 0 4px 16px; margin: 20px 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px; margin: 20px 0;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 15px; }
th { text-align: right; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); padding: 8px 10px; }
td { text-align: right; border-bottom: 1px solid var(--line); padding: 7px 10px; white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th { text-align: left; white-space: normal; }
tr.total td { font-weight: 600; }
ul { margin: 8px 0; padding-left: 22px; }
code { font-size: 14px; background: var(--page); padding: 1px 5px; border-radius: 4px; }
footer { color: var(--soft); font-size: 14px; }
footer dt { float: left; clear: left; width: 150px; }
footer dd { margin: 0 0 3px 160px; overflow-wrap: anywhere; }
"""


def write_page(results: Results, path: Path) -> None:
    """Writes the report; figures are interactive, their library is part of the file."""
    write_whole(path, page(results))


def page(results: Results) -> str:
    """The whole page as text."""
    from plotly.offline import get_plotlyjs

    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(results.experiment)}: domain weights</title>
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
<h1>{escape(results.experiment)}</h1>
<p class="soft">A language model was trained further on {len(results.domains)} kinds of text, once for each method below, with the
same seed, the same number of tokens and the same schedule. The methods differ only in how much of each kind it read.</p>
<p class="verdict">{escape(verdict_sentence(results))}</p>
<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>
{_final_section(results)}
{_figure_sections(results)}
{_targets_section(results)}
{_corpus_section(results)}
{_footer(results)}
</main>
</body>
</html>
"""


def _final_section(results: Results) -> str:
    header, rows = table(results)
    body = "".join(
        f"<tr{' class=total' if index >= len(results.domains) else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for index, row in enumerate(rows)
    )
    return f"""<section>
<h2>Where each method ended</h2>
<p class="soft">Held-out loss in nats per token; lower is better. “To go” is the share of the way from the initial to the target
loss that is left: 0 % is at the target, below 0 % is beyond it. One seed is no evidence; repeat with other seeds before believing a
difference of a few thousandths.</p>
<table><thead><tr>{"".join(f"<th>{escape(cell)}</th>" for cell in header)}</tr></thead><tbody>{body}</tbody></table>
</section>"""


def _figure_sections(results: Results) -> str:
    from vtune_jax.report import figures

    level = f"{results.targets.level:.0%}"
    parts = [
        (
            "Weights",
            "The share of each domain in the next batch. Velocitune starts at the prior (dotted) and gives more to domains that "
            "have come a smaller part of their way. Look for the lines that climb: these domains learn slowly.",
            figures.weights(results),
        ),
        (
            "Held-out loss and targets",
            f"Loss on text of the domain that is never trained on. The dashed line is the predicted target, the band its {level} "
            "interval. Look for the domains where the coloured line ends below the grey one.",
            figures.losses(results),
        ),
        (
            "Remaining fraction",
            "The share of the way from the base model's loss to the target that is still ahead: 100 % at the start, 0 % (dashed) "
            "at the target. Learning velocity is what has been covered. Look for domains far above the others: they lag.",
            figures.remaining(results),
        ),
        (
            "Tokens read",
            "How much of each domain was read, and how many times over (the label). More than a few epochs of a small domain "
            "teach little.",
            figures.reading(results),
        ),
        (
            "Target fits",
            "Where the targets come from: losses of short proxy runs at the prior (dots), and what the law fitted to them "
            "expects of the real run, whose learning rate stays high for longer. Look for wide bars at the target.",
            figures.fits(results),
        ),
        (
            "Training loss",
            "On each method's own batches, mean of 10 steps; the mixtures differ, so the levels may.",
            figures.training(results),
        ),
    ]
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    return "\n".join(
        f'<section><h2>{title}</h2><p class="soft">{escape(text)}</p>'
        f"{figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=title.split()[0].lower())}</section>"
        for title, text, figure in parts
    )


def _targets_section(results: Results) -> str:
    targets = results.targets
    columns = (
        results.domains,
        targets.initial,
        targets.target,
        targets.lower,
        targets.upper,
        targets.verdict,
        targets.advice,
    )
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{number(initial)}</td><td>{number(target)}</td>"
        f"<td>{number(lower)} to {number(upper)}</td><td>{escape(verdict)}</td><td>{escape(advice)}</td></tr>"
        for name, initial, target, lower, upper, verdict, advice in zip(*columns, strict=True)
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in targets.notes)
    return f"""<section class="words">
<h2>Can the targets be trusted?</h2>
<p class="soft">The proxies read {targets.proxy_tokens:,} tokens, {targets.proxy_tokens / targets.target_tokens:.0%} of one
method's {targets.target_tokens:,}.</p>
<table><thead><tr><th>domain</th><th>initial</th><th>target</th><th>{targets.level:.0%} interval</th><th>verdict</th><th>why</th></tr></thead>
<tbody>{body}</tbody></table>{f"<ul>{notes}</ul>" if notes else ""}
</section>"""


def _corpus_section(results: Results) -> str:
    body = "".join(
        f"<tr><td>{escape(domain['name'])}{' (base)' if domain['role'] == 'base' else ''}</td>"
        f"<td>{domain['train']['documents']:,}</td><td>{domain['train']['tokens']:,}</td>"
        f"<td>{domain['heldout']['documents']:,}</td><td>{domain['heldout']['tokens']:,}</td>"
        f"<td>{domain['duplicates']:,}</td><td>{domain['skipped']:,}</td></tr>"
        for domain in results.corpus.get("domains", [])
    )
    header = (
        "domain",
        "documents",
        "tokens",
        "held-out documents",
        "held-out tokens",
        "duplicates dropped",
        "skipped",
    )
    return f"""<section>
<h2>The corpus</h2>
<table><thead><tr>{"".join(f"<th>{cell}</th>" for cell in header)}</tr></thead><tbody>{body}</tbody></table>
</section>"""


def _footer(results: Results) -> str:
    facts: dict[str, Any] = {**{arm.name: arm.method for arm in results.arms.values()}, **results.run}
    rows = "".join(
        f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{escape(_shown(value))}</dd>"
        for name, value in facts.items()
    )
    return f"<footer><h2>How to run it again</h2><dl>{rows}</dl></footer>"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(f"{entry:.4g}" if isinstance(entry, float) else str(entry) for entry in value)
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
