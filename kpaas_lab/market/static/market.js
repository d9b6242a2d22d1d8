// Copy buttons, questions before what can't be undone, the choice on the usage page, and the try-it form.
"use strict";

async function copy(text, source) {
  try {
    await navigator.clipboard.writeText(text); // only on https and localhost
  } catch {
    const range = document.createRange();
    range.selectNodeContents(source);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    document.execCommand("copy");
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  await copy(source.textContent, source);
  const before = button.textContent;
  button.textContent = button.dataset.done;
  button.disabled = true;
  setTimeout(() => {
    button.textContent = before;
    button.disabled = false;
  }, 1500);
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

const choice = document.querySelector("[data-usage-choice]");
choice?.addEventListener("change", () => {
  const [kind, ...rest] = choice.value.split(":");
  for (const name of ["listing", "subscription"])
    choice.form.elements[name].value = kind === name ? rest.join(":") : "";
});

const form = document.getElementById("try-form");
if (form) tryIt(form);

function tryIt(form) {
  const at = (id) => document.getElementById(id);
  let key = null; // {text, until}: in memory only
  let running = null;

  async function freshKey() {
    if (key && key.until > Date.now()) return key.text;
    const answer = await fetch(form.dataset.keyUrl, {
      method: "POST",
      headers: { Accept: "application/json" },
      body: new URLSearchParams({ _xsrf: form.dataset.xsrf }),
      signal: running.signal,
    });
    const body = await answer.json();
    if (!answer.ok) throw new Error(`${body.error.message} ${body.error.hint}`);
    key = { text: body.key, until: Date.now() + (body.expires_in - 15) * 1000 };
    return key.text;
  }

  function show(status, good, output, facts = {}) {
    at("try-answer").hidden = false;
    at("try-status").textContent = status;
    at("try-status").className = `lab-chip ${good ? "lab-chip-good" : "lab-chip-bad"}`;
    at("try-time").textContent = facts.time ?? "–";
    at("try-overhead").textContent = facts.overhead ?? "–";
    at("try-trace").textContent = facts.trace ?? "–";
    at("try-output").textContent = output;
  }

  async function call(body, again = true) {
    const secret = await freshKey();
    const begun = performance.now();
    const answer = await fetch(form.dataset.url, {
      method: "POST",
      headers: { Authorization: `Bearer ${secret}`, "Content-Type": "application/json" },
      credentials: "omit",
      body,
      signal: running.signal,
    });
    const text = await answer.text();
    const time = `${(performance.now() - begun).toFixed(1)} ms`;
    if (answer.status === 401 && again) {
      key = null; // revoked or expired meanwhile
      return call(body, false);
    }
    const overhead = answer.headers.get("X-KPaaS-Overhead-Us");
    let shown = text;
    try {
      shown = JSON.stringify(JSON.parse(text), null, 1).replace(/\n\s+(?=[-+\d.eE]+[,\n])/g, " ").replace(/(?<=\d)\n\s+\]/g, " ]");
    } catch {
      /* not JSON: as it is */
    }
    show(`${answer.status} ${answer.statusText}`, answer.ok, shown.slice(0, 200000), {
      time,
      overhead: overhead ? (overhead < 1000 ? `${overhead} µs` : `${(overhead / 1000).toPrecision(3)} ms`) : null,
      trace: answer.headers.get("X-Trace-Id"),
    });
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    const body = at("try-body").value;
    try {
      JSON.parse(body);
    } catch (error) {
      show("–", false, form.dataset.noJson.replace("{problem}", error.message));
      return;
    }
    const submit = form.querySelector("[type=submit]");
    const label = submit.textContent;
    running = new AbortController();
    submit.disabled = true;
    submit.textContent = form.dataset.calling;
    at("try-stop").hidden = false;
    try {
      await call(body);
    } catch (error) {
      const stopped = running.signal.aborted;
      show("–", false, stopped ? form.dataset.stopped : form.dataset.failed.replace("{problem}", error.message));
    } finally {
      running = null;
      submit.disabled = false;
      submit.textContent = label;
      at("try-stop").hidden = true;
    }
  });
  at("try-stop").addEventListener("click", () => running?.abort());
}
