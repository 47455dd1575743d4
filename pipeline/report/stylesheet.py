"""The style sheet of the page.

Colours have one meaning throughout: ochre is a specialist, grey the control, blue the student, red
what is wrong. Plots use the same variables, so that they follow the reader's light or dark scheme.
"""

from __future__ import annotations

from typing import Final

STYLESHEET: Final = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #1c1e21; --muted: #5d636b; --rule: #dfe1e4;
  --track: #eceef0; --specialist: #b9771a; --control: #8a9099; --student: #2459b8;
  --wrong: #c0392b; --right: #1d7a46; --warn: #fdf3e0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1b1e23; --ink: #e6e8eb; --muted: #a0a7b0; --rule: #31363d;
    --track: #2a2f36; --specialist: #d89b45; --control: #828a94; --student: #6fa0f5;
    --wrong: #e8705f; --right: #5cc08a; --warn: #2e2718;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 68rem; background: var(--page);
  color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans",
    sans-serif;
  font-size: 1rem; overflow-wrap: anywhere;
}
h1, h2, h3, h4, p, figure, dl, dd, ol, ul { margin: 0; padding: 0; }
h1 { font-size: 2.25rem; line-height: 1.15; letter-spacing: -0.02em; font-weight: 680; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; font-weight: 650; margin-bottom: 0.4rem; }
h3 { font-size: 0.95rem; font-weight: 620; line-height: 1.35; }
h4 { font-size: 0.8rem; font-weight: 600; color: var(--muted); margin-bottom: 0.35rem; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.9em; }
.top { margin-bottom: 2rem; }
.kicker { display: flex; gap: 1rem; justify-content: space-between; color: var(--muted);
  font-size: 0.875rem; margin-bottom: 1.25rem; padding-bottom: 0.6rem;
  border-bottom: 1px solid var(--rule); }
.lead { font-size: 1.1rem; color: var(--muted); margin-top: 0.5rem; max-width: 44rem; }
.note { color: var(--muted); font-size: 0.925rem; max-width: 46rem; margin-bottom: 1.1rem; }
.muted, .absent { color: var(--muted); font-weight: 400; }
section { margin-top: 3.25rem; }

.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1px; margin-bottom: 1rem;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; }
.tiles.four { grid-template-columns: repeat(4, 1fr); }
.tile { background: var(--card); padding: 1rem 1.15rem 1.1rem; }
.tile dt { font-size: 0.875rem; color: var(--muted); }
.tile dd span { display: block; font-size: 0.825rem; color: var(--muted); line-height: 1.4; }
.tile dd .value { font-size: 1.9rem; line-height: 1.25; font-weight: 640; color: var(--ink);
  letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.tile.student { box-shadow: inset 0 3px var(--student); }
.tile.student dd .value { color: var(--student); }
.tile.control { box-shadow: inset 0 3px var(--control); }

.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.25rem; list-style: none;
  font-size: 0.875rem; margin-bottom: 0.9rem; }
.legend li { display: flex; align-items: center; gap: 0.45rem; }
.swatch { width: 0.8rem; height: 0.8rem; border-radius: 2px; }
.swatch-specialist { background: var(--specialist); }
.swatch-control { background: var(--control); }
.swatch-student { background: var(--student); }

.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.75rem 2.25rem;
  align-items: start; margin-bottom: 1.5rem; }
.figures > :only-child { max-width: 34rem; }
figcaption { font-size: 0.9rem; font-weight: 600; margin-bottom: 0.5rem; }
.plot { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round;
  stroke-linecap: butt; }
.plot text { font-family: inherit; font-variant-numeric: tabular-nums; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
  gap: 1rem; margin-bottom: 1.75rem; }
.panel { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 0.85rem 1rem; }
.panel .plot + .plot, .panel .absent { margin-top: 0.5rem; }
.panel .absent { font-size: 0.85rem; }

#networks > figure:first-of-type { max-width: 42rem; }
.scroll { overflow-x: auto; margin-bottom: 1.5rem; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.9rem; }
th, td { padding: 0.4375rem 0.75rem 0.4375rem 0; line-height: 1.375rem; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
th:first-child, td:nth-child(2):not(.number) { overflow-wrap: anywhere; min-width: 7rem; }
th { font-weight: 500; }
th:first-child { position: sticky; left: 0; background: var(--page); }
thead th { color: var(--muted); font-size: 0.825rem; vertical-align: bottom; }
tfoot th, tfoot td { font-weight: 600; border-bottom: 0; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
thead .number { white-space: normal; }
th:last-child, td:last-child { padding-right: 0; }

.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1rem; min-width: 0; }
.card header { display: flex; gap: 1rem; margin-bottom: 0.9rem; }
.card header > :last-child { min-width: 0; }
.picture { flex: none; width: 96px; height: 96px; display: grid; place-items: center;
  background: var(--track); border-radius: 6px; overflow: hidden; text-align: center;
  font-size: 0.78rem; line-height: 1.3; }
.picture img { width: 100%; height: 100%; object-fit: contain; }
.picture .pixels { image-rendering: pixelated; }
.key { font-size: 0.78rem; color: var(--muted); margin-top: 0.15rem; line-height: 1.35; }
.verdict { font-size: 0.85rem; color: var(--muted); }
.verdict.right strong { color: var(--right); }
.verdict.wrong strong { color: var(--wrong); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.answers { min-width: 0; }
.answers p { font-size: 0.78rem; }
.answers ol { list-style: none; }
.answers li { display: grid; grid-template-columns: 1fr auto; column-gap: 0.5rem;
  font-size: 0.78rem; line-height: 1.3; margin-bottom: 0.45rem; }
.answers .right { font-weight: 650; }
.answers .name { grid-column: 1 / -1; }
.share { font-variant-numeric: tabular-nums; color: var(--muted); white-space: nowrap; }
.bar { width: 100%; height: 4px; align-self: center; border-radius: 2px; }
.track { fill: var(--track); }
.fill-specialist { fill: var(--specialist); }
.fill-student { fill: var(--student); }

.facts > div { display: grid; grid-template-columns: 11rem 1fr; gap: 1rem; padding: 0.42rem 0;
  border-bottom: 1px solid var(--rule); font-size: 0.9rem; }
.facts dt { color: var(--muted); }
.facts { margin-bottom: 1.25rem; }
.warning { background: var(--warn); border-radius: 10px; padding: 0.85rem 1.1rem;
  margin-bottom: 1.25rem; font-size: 0.9rem; }
.warning ul { padding-left: 1.1rem; }
details { margin: 1rem 0 1.5rem; }
summary { cursor: pointer; font-size: 0.925rem; font-weight: 600; color: var(--student);
  padding: 0.25rem 0; }
details[open] > summary { margin-bottom: 0.75rem; }
:focus-visible { outline: 2px solid var(--student); outline-offset: 2px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1rem; margin: 0; overflow-x: auto; font-size: 0.8rem; line-height: 1.5;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }

@media (max-width: 52rem) {
  .figures { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem; }
  h1 { font-size: 1.8rem; }
  .tiles, .tiles.four { grid-template-columns: 1fr 1fr; }
  .tile { padding: 0.8rem 0.9rem; }
  .tile dd .value { font-size: 1.5rem; }
  .facts > div { grid-template-columns: 1fr; gap: 0; }
  .cards { grid-template-columns: minmax(0, 1fr); }
  section { margin-top: 2.5rem; }
}
@media print {
  body { max-width: none; padding: 0; }
  .card, .panel, figure, tr { break-inside: avoid; }
}
"""
