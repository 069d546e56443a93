"""The page of `ganomaly serve`: drop images on it and see score, verdict and map. No script but its own."""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --line: #d0d4da; --soft: #5c6570; --card: #fff;
  --ground: #f5f6f8; --ink: #1c2024; --blue: #1f5fa8; --good: #14692f; --bad: #ad2f19; --doubt: #7d5300; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #a4adb8; --card: #1d2126; --ground: #14171a;
  --ink: #e8eaed; --blue: #7ab4f5; --good: #6fd08c; --bad: #ff8f78; --doubt: #e6b450; } }
body { max-width: 74rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink); }
h1 { font-size: 1.6rem; margin: 0 0 1rem; }
a { color: var(--blue); }
#drop { display: block; position: relative; border: 2px dashed var(--soft); border-radius: .75rem;
  padding: 2.25rem 1rem; text-align: center; cursor: pointer; background: var(--card); }
#drop b { color: var(--blue); text-decoration: underline; }
#drop small { display: block; color: var(--soft); font-size: .9rem; }
#drop:hover, body.over #drop { border-color: var(--blue);
  background: color-mix(in srgb, var(--blue) 9%, var(--card)); }
#drop:focus-within { outline: 3px solid var(--blue); outline-offset: 3px; }
#drop input { position: absolute; inset: 0; opacity: 0; cursor: pointer; }
.soft { color: var(--soft); font-size: .9rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; margin: 1rem 0;
  padding: 1rem 1.25rem; }
h2 { font-size: 1rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
article p { margin: .35rem 0 0; }
.verdict { font-size: 1.25rem; font-weight: 700; }
.normal { color: var(--good); } .anomalous, .error { color: var(--bad); } .review, .invalid { color: var(--doubt); }
article img { display: block; max-width: 100%; height: auto; margin: .75rem 0 0; border-radius: .4rem; }
"""

_SCRIPT = """
const list = document.getElementById('list'), input = document.querySelector('input');
const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
const digits = value => value === null ? 'none' : Number(value).toPrecision(3);
function add(card, tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text; made.className = kind ?? ''; card.append(made);
  return made;
}
async function ask(path, file) {
  for (let tries = 0; ; tries++) {
    const headers = { 'Content-Type': 'application/octet-stream' };
    const answer = await fetch(path, { method: 'POST', body: file, headers })
      .catch(() => { throw new Error('the server cannot be reached'); });
    if (answer.ok) return answer;
    const again = answer.headers.get('Retry-After');
    if (again === null || tries === 9) {
      const said = await answer.json().catch(() => ({ error: 'HTTP ' + answer.status }));
      throw new Error(said.error);
    }
    await pause(Number(again));  // it is busy, or not yet ready
  }
}
async function show(card, file) {
  const wait = add(card, 'p', 'scoring ...', 'soft');
  try {
    const found = await (await ask('score', file)).json();
    wait.remove();
    add(card, 'p', found.verdict, 'verdict ' + found.verdict);
    if (found.score === null) throw new Error('NaN or infinite pixels: there is nothing to score');
    const sign = found.threshold === null || found.score <= found.threshold ? '\\u2264' : '>';
    add(card, 'p', `score ${digits(found.score)} ${sign} threshold ${digits(found.threshold)}, ` +
      `p-value ${digits(found.p_value)}`);
    const picture = document.createElement('img');
    picture.alt = `Four panels of ${file.name}: the input; what normal would look like; the difference beyond normal ` +
      'as colours; the regions found in it. Below, the scale of the colours.';
    picture.src = URL.createObjectURL(await (await ask('explain', file)).blob());
    await picture.decode();
    card.append(picture);
  } catch (error) {
    if (wait.isConnected) add(card, 'p', 'not scored', 'verdict error');
    wait.remove();
    add(card, 'p', error.message);
  }
  card.removeAttribute('aria-busy');
}
async function all(files) {
  const begun = [...files].map(file => {
    const card = document.createElement('article');
    card.setAttribute('aria-busy', 'true');
    add(card, 'h2', file.name);
    return [card, file];
  });
  list.prepend(...begun.map(([card]) => card));
  for (const [card, file] of begun) await show(card, file);
}
input.addEventListener('change', () => { all(input.files); input.value = ''; });
const on = (kind, then) => document.addEventListener(kind, event => { event.preventDefault(); then(event); });
for (const kind of ['dragenter', 'dragover']) on(kind, () => document.body.classList.add('over'));
for (const kind of ['dragleave', 'drop']) on(kind, () => document.body.classList.remove('over'));
on('drop', event => all(event.dataTransfer.files));
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Is it normal? - ganomaly</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Is it normal?</h1>
<label id="drop">Drop images anywhere, or <b>choose files</b>
<small>PNG, JPEG, BMP, TIFF, WebP, GIF or PNM; several at once</small>
<input type="file" multiple accept="image/*,.pnm,.pgm,.ppm,.pbm,.tif,.tiff"></label>
<p class="soft">Nothing is kept. Colours mean the same for every image: they begin where the difference is larger than
nearly everywhere in normal images. The p-value is the share of normal images that are at least as far out.
For programs: <a href="openapi.json">openapi.json</a>.</p>
<section id="list" aria-live="polite" aria-label="Verdicts"></section>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# The page may run its own script and talk to its own server, nothing else.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_digest(_SCRIPT)}'; style-src 'sha256-{_digest(_STYLE)}'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
