"""The page of the report: HTML and CSS, no script; follows the reader's light or dark setting and prints well."""

from __future__ import annotations

from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; --page: #f3f5f8; --card: #fff; --ink: #1c232b; --soft: #5d6875; --line: #dde2e8;
  --accent: #1f6fd6; --code: #f3f5f8; --picture: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --page: #12161b; --card: #1b2128; --ink: #e4e9ef; --soft: #9aa6b3;
  --line: #303943; --accent: #6aa9f7; --code: #12161b; --picture: #f6f7f9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 20px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 0 0 6px; }
header p { margin: 6px 0 0; color: var(--soft); }
section, details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 24px;
  margin-top: 18px; }
summary { font-weight: 600; font-size: 18px; cursor: pointer; }
p.intro { color: var(--soft); margin: 0 0 14px; max-width: 75ch; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 14px; margin: 24px 0 0; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; }
.figure b { display: block; font-size: 28px; line-height: 1.15; white-space: nowrap;
  font-variant-numeric: tabular-nums; font-weight: 650; }
.figure small { color: var(--soft); font-size: 15px; font-weight: 400; }
.figure span { color: var(--soft); font-size: 13px; }
.figure:first-child b { color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
tr:last-child td { border-bottom: 0; }
th.text, td.text { text-align: left; }
td:first-child, th:first-child { padding-left: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: 10px 0 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 18px; }
.pictures.wide { grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; min-width: 0; }
figure img { max-width: 100%; height: auto; display: block; border-radius: 8px; background: var(--picture); }
figure svg { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: 13px; margin: 0 0 6px; }
ul.notes { color: var(--soft); font-size: 13px; margin: 12px 0 0; padding-left: 18px; }
footer { color: var(--soft); font-size: 13px; margin-top: 22px; overflow-wrap: anywhere; }
@media print { body { background: #fff; } section, details, .figure { break-inside: avoid; } main { padding: 0; } }
"""

PAGE: Final = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>"""
    + _STYLE
    + """</style>
</head>
<body>
<main>
<header>
<h1>{{ report.title }}</h1>
{% if report.subtitle %}
<p>{{ report.subtitle }}</p>
{% endif %}
</header>
<div class="figures">
{% for name, value, deviation in head.figures %}
<div class="figure"><b>{{ value }}{% if deviation %}<small>&nbsp;&plusmn;&nbsp;{{ deviation }}</small>{% endif %}</b>
<span>{{ name }} (%)</span></div>
{% endfor %}
<div class="figure"><b>{{ head.count }}</b><span>{{ head.count_name }}
</span></div>
</div>
<section>
<h2>Results</h2>
<div class="scroll"><table>
<thead><tr>
{% for cell in table.header %}
<th{% if cell in ("name", "protocol") %} class="text"{% endif %}>{{ cell }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
{% for cell in row %}
<td{% if table.header[loop.index0] in ("name", "protocol") %} class="text"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
<ul class="notes">
<li>{{ head.explanation }}</li>
{% for note in table.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</section>
{% if report.facts %}
<section>
<h2>The run</h2>
<dl>
{% for name, value in report.facts.items() %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
</section>
{% endif %}
{% for section in report.sections %}
{% if section.folded %}
<details><summary>{{ section.title }}</summary>
{% else %}
<section><h2>{{ section.title }}</h2>
{% endif %}
{% if section.introduction %}
<p class="intro">{{ section.introduction }}</p>
{% endif %}
{% if section.pictures %}
<div class="pictures{% if section.wide %} wide{% endif %}">
{% for picture in section.pictures %}
<figure>
{% if picture.caption %}
<figcaption>{{ picture.caption }}</figcaption>
{% endif %}
{% if picture.markup %}
{{ picture.markup | safe }}
{% else %}
<img src="{{ picture.uri }}" alt="{{ picture.description or picture.caption or section.title }}" loading="lazy">
{% endif %}
</figure>
{% endfor %}
</div>
{% endif %}
{% if section.text %}
<pre>{{ section.text }}</pre>
{% endif %}
{% if section.folded %}
</details>
{% else %}
</section>
{% endif %}
{% endfor %}
<footer>
{% for name, value in head.facts.items() %}
{{ name }} <code>{{ value }}</code> &middot;
{% endfor %}
checkpoint <code>{{ newest.checkpoint_hash }}</code> &middot; data set <code>{{ newest.manifest_hash }}</code>
{% if newest.seconds %}
&middot; evaluated in {{ "%.1f" | format(newest.seconds) }} s
{% endif %}
</footer>
</main>
</body>
</html>
"""
)
