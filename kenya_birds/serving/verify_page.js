"use strict";
// Shows one detection after the other, plays it, and sends answers. Texts are set as text, never as HTML.

const find = (selector) => document.querySelector(selector);
const KEYS = {"1": "right", r: "right", w: "wrong", o: "other", u: "unsure"};
const SAID = {right: "right", wrong: "wrong", other: "another species", unsure: "unsure"};
const TOO_SOON_MS = 250;  // a second press of a key must not answer a detection that nobody has heard
const KEPT = 6;  // detections whose sound and picture are kept

let start, shown = null, shownAt = 0, isBusy = false, chosen = 0, offered = [];
const kept = new Map();

async function ask(path, content) {
  const options = content === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(content),
  };
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("The program does not answer. Start kenya-birds verify page again; all answers until now are saved.");
  }
  const found = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(found.message), {status: reply.status});
  return found;
}

async function load(path) {
  const reply = await fetch(path);
  if (!reply.ok) throw new Error(`${path} cannot be loaded`);
  return URL.createObjectURL(await reply.blob());
}

// Sound and picture, which are loaded while the detection before is heard.
function media(key, sound, picture) {
  if (!kept.has(key)) {
    const loading = Promise.all([load(sound), picture ? load(picture).catch(() => null) : null]);
    loading.catch(() => kept.delete(key));
    kept.set(key, loading);
    if (kept.size > KEPT) {
      const [oldest, urls] = kept.entries().next().value;
      kept.delete(oldest);
      urls.then((all) => all.forEach((url) => url && URL.revokeObjectURL(url))).catch(() => {});
    }
  }
  return kept.get(key);
}

const mediaOf = (id, hasPicture) => media(`${id} ${hasPicture}`, `clip/${id}`, hasPicture && `picture/${id}`);

function say(text, isProblem = false) {
  find("#message").textContent = text;
  find("#message").classList.toggle("problem", isProblem);
}

function show(question) {
  for (const player of document.querySelectorAll("audio")) player.pause();
  shown = question;
  shownAt = performance.now();
  find("#card").hidden = !question;
  find("#end").hidden = Boolean(question);
  find("#of_species").parentElement.hidden = !question;
  if (!question) return showEnd();
  const {progress, answer} = question;
  find("#total").textContent = `${progress.answered} of ${progress.total} answered`;
  find("#of_species").textContent = `this species ${progress.species_answered} of ${progress.species_total}`;
  setBar("#total_bar", progress.answered, progress.total);
  setBar("#species_bar", progress.species_answered, progress.species_total);
  const isNewSpecies = find("#card").dataset.species !== question.species;
  find("#card").dataset.species = question.species;
  find("#card").dataset.id = question.id;
  if (isNewSpecies) {  // screen readers say only what changes
    find("#common").textContent = question.common_name || question.species;
    find("#scientific").textContent = question.scientific_name;
  }
  const time = question.local_time.replace("T", " ").slice(0, 16);
  find("#where").textContent = [`No. ${progress.place}`, question.site, time, question.recording].filter(Boolean).join(" · ");
  find("#note").value = asLine(answer.note);
  find("#back").disabled = !question.previous;
  find("#forward").disabled = !question.next;
  for (const button of document.querySelectorAll("[data-answer]")) {
    button.setAttribute("aria-pressed", String(button.dataset.answer === answer.answer));
  }
  const by = answer.verified_by ? ` (${answer.verified_by})` : "";
  const which = question.other_name ? `: ${speciesTitle(answer.other_species) || question.other_name}` : "";
  say(answer.answer ? `Answered: ${SAID[answer.answer]}${which}${by}` : "");
  showMedia(question);
  if (isNewSpecies) showReference(question.species);
}

function setBar(selector, value, most) {
  find(selector).max = most;
  find(selector).value = value;
}

function showPicture(isThere) {
  find("#detection .without").hidden = isThere;
  find("#detection .picture").hidden = !isThere;
}

async function showMedia(question) {
  const image = find("#detection img"), sound = find("#sound");
  showPicture(question.has_picture);
  image.style.visibility = "hidden";
  sound.removeAttribute("src");
  try {
    const [clip, picture] = await mediaOf(question.id, question.has_picture);
    if (shown !== question) return;
    showPicture(Boolean(picture));
    if (picture) image.src = picture;
    image.style.visibility = "";
    sound.src = clip;
    await play(sound);
    if (question.upcoming) mediaOf(question.upcoming, question.has_picture).catch(() => {});
  } catch (error) {
    if (shown === question) say(error.message, true);
  }
}

async function play(sound, fromStart = true) {
  for (const other of document.querySelectorAll("audio")) if (other !== sound) other.pause();
  if (fromStart) sound.currentTime = 0;
  try {
    await sound.play();
  } catch (error) {
    // Browsers play nothing before the first key or click.
    if (error.name === "NotAllowedError") say("Press space, or tap Play, to hear it. The next ones play at once.");
    else if (error.name !== "AbortError") say(`The sound cannot be played: ${error.message}`, true);
  }
}

async function showReference(species) {
  const figure = find("#reference");
  find("#reference_sound").removeAttribute("src");
  figure.hidden = !start.references.includes(species);
  figure.style.visibility = "hidden";
  if (figure.hidden) return;
  const path = `reference/${encodeURIComponent(species)}`;
  try {
    // The sound first: only one of both has to be made.
    const [sound, picture] = [await load(`${path}/sound`), await load(`${path}/picture`)];
    if (!shown || shown.species !== species) return;
    find("#reference img").src = picture;
    find("#reference_sound").src = sound;
    figure.style.visibility = "";
  } catch {
    if (shown && shown.species === species) figure.hidden = true;
  }
}

function showEnd() {
  delete find("#card").dataset.species;
  find("#total").textContent = "all answered";
  setBar("#total_bar", 1, 1);
  find("#table").textContent = `${start.folder}/verify.csv`;
  find("#command").textContent = start.command;
}

// Does one thing at a time: keys that come meanwhile are ignored.
async function alone(work) {
  if (isBusy) return;
  isBusy = true;
  try {
    await work();
  } catch (error) {
    if (error.status === 409) {
      const {question} = await ask(`question/${shown.id}`).catch(() => ({question: shown}));
      show(question);
    }
    say(error.message, true);
  } finally {
    isBusy = false;
  }
}

// A field has one line; notes of a spreadsheet may have several, and stay as they are if nobody changes them.
const asLine = (note) => note.replace(/\s*[\r\n]\s*/g, " ");
const isNoteChanged = () => find("#note").value !== asLine(shown.answer.note);

function content(answer, other = "") {
  const note = isNoteChanged() ? find("#note").value : shown.answer.note;
  const given = {answer, other_species: other, note, verified_by: find("#by").value, verified_at: ""};
  return {id: shown.id, answer: given, seen: shown.answer};
}

function send(answer, other = "") {
  return alone(async () => {
    const {question} = await ask("answer", content(answer, other));
    if (answer) return show(question);
    shown = question;  // only the note was saved: the sound goes on
    say("The note is saved.");
  });
}

function answer(word) {
  if (!shown || performance.now() - shownAt < TOO_SOON_MS) return;
  if (word === "other") openOther();
  else send(word);
}

function go(id) {
  if (!id) return;
  alone(async () => {
    if (isNoteChanged()) await ask("answer", content(""));
    show((await ask(`question/${id}`)).question);
  });
}

function back() {
  if (shown) go(shown.previous);
  else alone(async () => show((await ask("last")).question));
}

function skip() {
  if (shown) go(shown.next);
}

const speciesTitle = (code) => code === "????" ? "a bird, not known which" : "";

function openOther() {
  find("#search").value = "";
  find("#other").showModal();
  offer();
  find("#search").focus();
}

function offer() {
  const words = find("#search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (text) => words.every((word) => text.toLowerCase().includes(word));
  offered = [
    {code: "", title: "Not known which", about: "a bird or something else"},
    {code: "????", title: "A bird, not known which", about: "????"},
    ...start.species.filter(({code}) => code !== "????" && code !== shown.species).map((one) => (
      {code: one.code, title: one.common_name || one.code, about: `${one.scientific_name} ${one.code}`}
    )),
  ].filter((one) => fits(`${one.title} ${one.about}`));
  chosen = 0;
  find("#none").hidden = offered.length > 0;
  find("#species").replaceChildren(...offered.map((one, at) => {
    const row = document.createElement("li"), about = document.createElement("small");
    row.setAttribute("role", "option");
    row.id = `species_${at}`;
    about.textContent = one.about;
    row.append(`${one.title} `, about);
    row.addEventListener("click", () => choose(at));
    return row;
  }));
  mark(0);
}

function mark(at) {
  if (!offered.length) return find("#search").removeAttribute("aria-activedescendant");
  chosen = Math.min(Math.max(at, 0), offered.length - 1);
  [...find("#species").children].forEach((row, n) => row.setAttribute("aria-selected", String(n === chosen)));
  find(`#species_${chosen}`).scrollIntoView({block: "nearest"});
  find("#search").setAttribute("aria-activedescendant", `species_${chosen}`);
}

function choose(at) {
  if (!offered[at]) return;
  find("#other").close();
  send("other", offered[at].code);
}

function onKey(event) {
  const field = document.activeElement;
  if (event.ctrlKey || event.metaKey || event.altKey || find("#other").open) return;
  if (field === find("#note") || field === find("#by")) {
    if (event.key === "Escape" && field === find("#note") && shown) field.value = asLine(shown.answer.note);
    if (event.key === "Enter" && field === find("#note") && shown) send("");
    if (event.key === "Escape" || event.key === "Enter") field.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === " " && field instanceof HTMLButtonElement) return;  // the button that was reached with Tab
  const work = KEYS[key] ? () => answer(KEYS[key]) : {
    b: back, ArrowLeft: back, s: skip, ArrowRight: skip,
    " ": () => shown && play(find("#sound")),
    c: () => !find("#reference").hidden && play(find("#reference_sound")),
    n: () => shown && find("#note").focus(),
  }[key];
  if (!work) return;
  event.preventDefault();
  if (!event.repeat) work();
}

function onSearchKey(event) {
  const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
  if (!step && event.key !== "Enter") return;
  event.preventDefault();
  if (step) mark(chosen + step);
  else if (!event.repeat) choose(chosen);
}

// Moves the line over the picture while a sound is played.
function follow(figure, sound) {
  const cursor = figure.querySelector(".cursor"), picture = figure.querySelector(".picture");
  const move = () => {
    const share = sound.duration ? sound.currentTime / sound.duration : 0;
    cursor.style.left = `${100 * (start.axes.left + start.axes.width * share)}%`;
    if (!sound.paused) requestAnimationFrame(move);
  };
  sound.addEventListener("play", () => { figure.classList.add("playing"); move(); });
  for (const end of ["pause", "ended", "emptied"]) {
    sound.addEventListener(end, () => figure.classList.remove("playing"));
  }
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width - start.axes.left) / start.axes.width;
    if (!sound.duration) return;
    sound.currentTime = Math.min(Math.max(share, 0), 1) * sound.duration;
    play(sound, false);
  });
}

function connect() {
  document.addEventListener("keydown", onKey);
  const on = (selector, work) => find(selector).addEventListener("click", (event) => {
    if (event.detail) event.currentTarget.blur();  // a mouse or finger: space plays again, and does not press it
    work();
  });
  for (const word of Object.keys(SAID)) on(`[data-answer=${word}]`, () => answer(word));
  on("#back", back);
  on("#end_back", back);
  on("#forward", skip);
  on("#play", () => play(find("#sound")));
  on("#play_reference", () => play(find("#reference_sound")));
  on("#cancel", () => find("#other").close());
  find("#search").addEventListener("input", offer);
  find("#search").addEventListener("keydown", onSearchKey);
  follow(find("#detection"), find("#sound"));
  follow(find("#reference"), find("#reference_sound"));
  find("#by").value = localStorage.getItem("by") ?? start.by;
  if (start.by) find("#by").value = start.by;
  find("#by").addEventListener("change", () => localStorage.setItem("by", find("#by").value));
}

(async () => {
  try {
    start = await ask("start");
    connect();
    show(start.question);
  } catch (error) {
    find("#card").hidden = false;
    say(error.message, true);
  }
})();
