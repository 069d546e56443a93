"""The page of `ganomaly serve`: drop an image on it and see score, verdict and map. No script but its own."""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
#drop { display: block; border: 2px dashed #888; border-radius: .6rem; padding: 2.5rem 1rem; }
#drop { text-align: center; cursor: pointer; }
#drop.over, #drop:focus-within { border-color: #2166ac; background: #2166ac22; }
#drop input { position: absolute; opacity: 0; }
article { border: 1px solid #8886; border-radius: .6rem; margin: 1rem 0; padding: .8rem 1rem; }
article h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
article img { max-width: 100%; margin-top: .6rem; background: #fff; }
.verdict { font-weight: 700; text-transform: uppercase; margin-right: .6rem; }
.normal { color: #1a7f37; } .anomalous, .error { color: #c8442b; } .review, .invalid { color: #9a6700; }
"""

_SCRIPT = """
const drop = document.getElementById('drop'), list = document.getElementById('list');
const digits = value => value === null ? 'none' : Number(value).toPrecision(4);
async function ask(path, file) {
  const headers = { 'Content-Type': 'application/octet-stream' };
  const answer = await fetch(path, { method: 'POST', body: file, headers });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({ error: 'HTTP ' + answer.status }));
  throw new Error(said.error);
}
function line(card, word, kind, text) {
  const p = document.createElement('p'), verdict = document.createElement('span');
  verdict.className = 'verdict ' + kind; verdict.textContent = word;
  p.append(verdict, text); card.append(p);
}
async function show(file) {
  const card = document.createElement('article'), name = document.createElement('h2');
  name.textContent = file.name; card.append(name); list.prepend(card);
  try {
    const found = await (await ask('score', file)).json();
    const numbers = ['score', 'threshold', 'p_value'].map(key => key.replace('_', '-') + ' ' + digits(found[key]));
    line(card, found.verdict, found.verdict, numbers.join(', '));
    if (found.verdict === 'invalid') return;
    const picture = document.createElement('img');
    picture.alt = 'input, what normal would look like, the difference beyond normal, and the regions found';
    picture.src = URL.createObjectURL(await (await ask('explain', file)).blob());
    card.append(picture);
  } catch (error) { line(card, 'not scored', 'error', error.message); }
}
async function all(files) { for (const file of files) await show(file); }
document.querySelector('input').addEventListener('change', event => all([...event.target.files]));
const on = (kind, then) => drop.addEventListener(kind, event => { event.preventDefault(); then(event); });
for (const kind of ['dragenter', 'dragover']) on(kind, () => drop.classList.add('over'));
for (const kind of ['dragleave', 'drop']) on(kind, () => drop.classList.remove('over'));
on('drop', event => all([...event.dataTransfer.files]));
"""

PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ganomaly</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
<h1>Is it normal?</h1>
<label id="drop">Drop images here, or choose files<input type="file" multiple accept="image/*"></label>
<p>Nothing is kept. For programs: <a href="openapi.json">openapi.json</a>.</p>
<section id="list" aria-live="polite"></section>
<script>{_SCRIPT}</script>
</html>
"""


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# The page may run its own script and talk to its own server, nothing else.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_digest(_SCRIPT)}'; style-src 'sha256-{_digest(_STYLE)}'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
