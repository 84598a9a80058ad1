"""The frame of the report's pages: head, style sheet, foot."""

from __future__ import annotations

from html import escape

CITATION = (
    "Mang Ning, Enver Sangineto, Angelo Porrello, Simone Calderara, Rita Cucchiara: Input Perturbation "
    "Reduces Exposure Bias in Diffusion Models. ICML 2023, PMLR 202:26245\N{EN DASH}26265, arXiv:2301.11706."
)

CSS = """
:root { --paper: #ffffff; --ink: #1f2430; --soft: #5b6270; --line: #dfe3ea; --fill: #f5f7fa; --link: #0b5cad;
  --better: #06683f; --better-fill: #e3f4ea; --worse: #a3320b; --worse-fill: #fdebe3; --within: #4a5160;
  --within-fill: #eceff4; --one: #6b5a10; --one-fill: #f7f1d8; }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #14171c; --ink: #e4e7ec; --soft: #9aa3b2; --line: #2e343e;
  --fill: #1b1f26; --link: #7db7f2; --better: #7fd6a8; --better-fill: #15301f; --worse: #f5a382;
  --worse-fill: #3a1d12; --within: #b6bdca; --within-fill: #262b34; --one: #dcc979; --one-fill: #322c14; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding: 3rem 0 1rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.2; margin: 0 0 .75rem; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
a { color: var(--link); text-underline-offset: .15em; }
.kicker { margin: 0 0 .4rem; color: var(--soft); font-size: .8rem; letter-spacing: .08em;
  text-transform: uppercase; }
.lead { font-size: 1.1rem; max-width: 48rem; margin: 0 0 .75rem; }
.facts, .muted { color: var(--soft); }
.facts { margin: 0; font-size: .9rem; }
section, nav { margin: 2.25rem 0; padding-top: 1.5rem; border-top: 1px solid var(--line); }
section > p { max-width: 48rem; }
nav .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem 2rem; }
nav h3 { color: var(--soft); font-size: .85rem; }
nav ol { margin: 0; padding-left: 1.4rem; }
.scroll { overflow-x: auto; margin: 0 0 .75rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding: .5rem 0 .35rem; }
th, td { padding: .36rem .75rem; text-align: left; vertical-align: baseline; }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom;
  border-bottom: 1px solid var(--line); }
thead tr:first-child th { border-top: 2px solid var(--ink); }
thead th.span { text-align: center; color: var(--ink); }
tbody tr:last-child > * { border-bottom: 2px solid var(--ink); }
tbody th { font-weight: 500; white-space: nowrap; }
tbody th.again { color: transparent; }
tr.group > * { border-top: 1px solid var(--line); }
tr.difference th { font-weight: 400; font-style: italic; color: var(--soft); }
tr.difference th.again { color: transparent; }
.n { text-align: right; white-space: nowrap; }
.below { display: block; font-size: .82em; line-height: 1.25; }
.below .paper { color: var(--soft); margin-left: .45em; }
.mark { white-space: nowrap; }
td.better { background: var(--better-fill); } td.worse { background: var(--worse-fill); }
td.within { background: var(--within-fill); } td.one { background: var(--one-fill); }
.better .mark, .better.mark { color: var(--better); } .worse .mark, .worse.mark { color: var(--worse); }
.within .mark, .within.mark { color: var(--within); } .one .mark, .one.mark { color: var(--one); }
.notes { color: var(--soft); font-size: .85rem; max-width: 52rem; }
.notes p { margin: 0 0 .3rem; }
.files { font-size: .85rem; margin: .5rem 0 0; }
.files a { display: inline-block; padding: .05rem .55rem; margin-right: .3rem; border: 1px solid var(--line);
  border-radius: 99rem; text-decoration: none; }
.pair { background: var(--fill); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.25rem;
  margin: 0 0 1rem; }
.bar { display: grid; grid-template-columns: 5rem minmax(6rem, 18rem) 1fr; gap: .9rem; align-items: center;
  font-size: .9rem; margin: .3rem 0; }
.stack { display: flex; height: .8rem; border-radius: 99rem; overflow: hidden; gap: 2px; }
.stack .better { background: #0f9d63; } .stack .within { background: #98a1b0; }
.stack .worse { background: #d9561f; }
.stack .one { background: #c9ac2c; }
details { margin-top: .75rem; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; margin-bottom: .4rem; }
.cases { font-size: .85rem; }
.cases tr > * { padding: .18rem .7rem; white-space: nowrap; }
.cases td.mark { background: none; }
a.number { color: inherit; text-decoration: underline dotted var(--line); }
a.number:hover { color: var(--link); }
.card:target { background: var(--fill); }
.card h2 { font-size: 1rem; }
.card code { font-size: .85em; overflow-wrap: anywhere; }
.card .receipt { font-size: .8em; color: var(--soft); }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .6rem; padding: .6rem; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .5rem; max-width: 52rem; }
footer { color: var(--soft); font-size: .85rem; border-top: 1px solid var(--line); padding: 1rem 1.25rem 3rem;
  margin-top: 2.5rem; }
@media (max-width: 40rem) { .bar { grid-template-columns: 1fr; gap: .15rem; } .stack { max-width: 100%; } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --fill: #fff; }
  body { font-size: 10pt; } main, footer { max-width: none; padding: 0; } .files { display: none; }
  header { padding-top: 0; } .scroll { overflow: visible; } table { font-size: 8pt; }
  section { break-inside: auto; } h2, h3, thead { break-after: avoid; } figure, tr { break-inside: avoid; }
  td, .stack span { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML page around `body`."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
{body}
</main>
<footer>
<p>The method is that of {escape(CITATION)} <a href="https://arxiv.org/abs/2301.11706">arxiv.org/abs/2301.11706</a></p>
<p>Made by <code>ipdiff report</code> from the tables' csv files. Figures in brackets are the paper's own.</p>
</footer>
</body>
</html>
"""
