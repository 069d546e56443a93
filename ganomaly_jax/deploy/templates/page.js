
const list = document.getElementById('list'), input = document.querySelector('input');
const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
const digits = value => value === null ? 'none' : Number(value).toPrecision(3);
function add(card, tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text; made.className = kind ?? ''; card.append(made);
  return made;
}
const key = document.getElementById('key');
let token = '';  // kept while the page is open
function tokenGiven() {
  key.hidden = false;
  key.querySelector('input').focus();
  return new Promise(done => key.addEventListener('submit', event => {
    event.preventDefault();
    token = key.querySelector('input').value.trim();
    key.hidden = true;
    key.reset();
    done();
  }, { once: true }));
}
async function ask(path, file) {
  for (let tries = 0; ; tries++) {
    const headers = { 'Content-Type': 'application/octet-stream' };
    if (token) headers.Authorization = `Bearer ${token}`;
    const answer = await fetch(path, { method: 'POST', body: file, headers })
      .catch(() => { throw new Error('the server cannot be reached'); });
    if (answer.ok) return answer;
    if (answer.status === 401) {
      await tokenGiven();
      continue;
    }
    const again = answer.headers.get('Retry-After');
    if (again === null || tries === 9) {
      const said = await answer.json().catch(() => ({ error: 'HTTP ' + answer.status }));
      throw new Error(said.error);
    }
    await pause(Number(again));  // it is busy or starting
  }
}
async function show(card, file) {
  const wait = add(card, 'p', 'scoring ...', 'soft');
  try {
    const found = await (await ask('score', file)).json();
    wait.remove();
    add(card, 'p', found.verdict, 'verdict ' + found.verdict);
    if (found.score === null) throw new Error('NaN or infinite pixels: there is nothing to score');
    const sign = found.threshold === null || found.score <= found.threshold ? '\u2264' : '>';
    add(card, 'p', `score ${digits(found.score)} ${sign} threshold ${digits(found.threshold)}, ` +
      `p-value ${digits(found.p_value)}`);
    const picture = document.createElement('img');
    picture.alt = `Four panels of ${file.name}: the input; what normal would look like; the difference beyond normal ` +
      'as colours; the regions found in it. Below, the scale of the colours.';
    picture.src = URL.createObjectURL(await (await ask('explain', file)).blob());
    await picture.decode();
    const map = add(card, 'div', '', 'map');
    map.append(picture);
    map.scrollLeft = map.scrollWidth;  // where a telephone has no room for all panels, the last ones count
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
