// The page: what is in the address decides what is shown.

import { findNumber, getNeighbours, getQuery, getState, nameOf, sendQuery } from "./api.js"
import { takeFiles } from "./intake.js"
import { COUNT, Results, percent } from "./results.js"
import { go, readRoute, rewrite } from "./route.js"
import { Wall } from "./wall.js"

const POLL_MS = 500
const IDLE_MS = 5000
const USUAL_HEAT = 80
const LARGEST_FILE = 32_000_000

const byId = (id) => document.getElementById(id)
const wall = new Wall(byId("wall"), byId("sheet"))
const results = new Results(byId("results"))
let state = null
let route = { image: null, query: null, heat: 0 }
let lastHeat = USUAL_HEAT
let started = null
let isLost = false
let timer = null

const firstSelecting = () => {
  const at = state.artifacts.findIndex(({ selection }) => selection)
  return at < 0 ? null : at
}

function say(text) {
  byId("note").textContent = text
  byId("note").hidden = !text
}

async function poll() {
  const before = state
  try {
    state = await getState()
    if (before && before.version !== state.version) return location.reload() // other images, other numbers
    if (isLost) say("")
    isLost = false
    showState()
    if (!before) await begin()
    else if (state.full && !before.full && !results.hasFocus()) await showQuery(route) // its neighbours among all images
    pollIn(state.full ? IDLE_MS : POLL_MS)
  } catch (error) {
    isLost = true
    say(error.message)
    pollIn(4 * POLL_MS)
  }
}

function pollIn(milliseconds) {
  clearTimeout(timer)
  timer = setTimeout(poll, milliseconds)
}

function showState() {
  const { images, artifacts, full, problem } = state
  const done = artifacts.reduce((sum, { embedded, failed }) => sum + embedded + failed, 0)
  const total = images * artifacts.length
  byId("progress").hidden = full || done === total
  byId("progress").value = done / total
  started ??= { at: performance.now(), done }
  const seconds = (performance.now() - started.at) / 1000
  const rate = seconds > 1 && done > started.done ? `, ${Math.round((done - started.done) / seconds).toLocaleString("en")} a second` : ""
  const count = images.toLocaleString("en")
  const least = Math.min(...artifacts.map(({ embedded, failed }) => embedded + failed))
  const accuracy = artifacts.filter(({ judged }) => judged).map(({ name, right, judged }) => `${name} ${percent(right, judged)}`)
  const knn = accuracy.length ? ` · k-NN: ${accuracy.join(", ")}` : ""
  byId("summary").textContent =
    (done < total ? `${least.toLocaleString("en")} of ${count} images embedded${rate}` : `${count} images`) + knn
  byId("summary").title = byId("summary").textContent
  results.update(state)
  if (problem) say(problem)
}

async function begin() {
  byId("heat-tool").hidden = firstSelecting() === null
  showClasses()
  wall.show(state.images, { version: state.version, heat: readRoute().heat, artifact: firstSelecting() })
  await showRoute()
  document.body.classList.add("ready")
}

function showClasses() {
  const { classes } = state
  byId("class-tool").hidden = !classes.length
  byId("class").replaceChildren(new Option("all", ""), ...classes.map(({ name, first, count }) => new Option(`${name} (${count})`, first)))
}

async function showRoute() {
  const wanted = readRoute()
  if (wanted.number !== null) {
    wanted.image = await nameOf(wanted.number)
    rewrite(wanted)
  }
  const before = route
  route = wanted
  byId("heat").value = wanted.heat
  if (wanted.heat) lastHeat = wanted.heat
  document.documentElement.style.setProperty("--heat", wanted.heat / 100)
  if (wanted.image === before.image && wanted.query === before.query && started) {
    wall.setHeat(wanted.heat, firstSelecting())
    results.setHeat(wanted.heat)
    return
  }
  say("")
  results.section.scrollTop = 0
  await showQuery(wanted)
}

async function showQuery(wanted) {
  if (!wanted.image && !wanted.query) {
    const hadFocus = results.hasFocus()
    results.clear()
    document.body.classList.remove("with-results")
    if (hadFocus && wall.focused !== undefined) wall.focus(wall.focused)
    document.title = "mimexport"
    wall.setCurrent(null)
    return
  }
  try {
    const answer = wanted.query
      ? await getQuery(wanted.query, COUNT)
      : await getNeighbours(await findNumber(wanted.image), COUNT)
    if (wanted !== route) return
    document.body.classList.add("with-results")
    document.title = `${answer.name ?? "Your image"} · mimexport`
    const hadFocus = wall.hasFocus() || results.hasFocus()
    results.show(answer, state, wanted.heat)
    if (hadFocus) results.focus()
    wall.setCurrent(answer.number ?? null)
    retryWhileEmbedding(answer, wanted)
  } catch (error) {
    if (wanted === route) say(error.message)
  }
}

// What was not embedded yet may be a second later.
function retryWhileEmbedding(answer, wanted) {
  if (!state.full && answer.columns.some(({ neighbours }) => !neighbours.length)) {
    setTimeout(() => { if (wanted === route) showQuery(wanted) }, 2 * POLL_MS)
  }
}

async function search(file) {
  if (file.size > LARGEST_FILE) {
    say(`${file.name} has ${Math.round(file.size / 1e6).toLocaleString("en")} MB; images of up to 32 MB are taken`)
    return
  }
  say("")
  document.body.classList.add("busy")
  try {
    const { key } = await sendQuery(file, COUNT)
    go({ query: key, heat: route.heat })
  } catch (error) {
    say(error.message)
  } finally {
    document.body.classList.remove("busy")
  }
}

function step(by) {
  const number = results.answer?.number
  if (number === undefined) return
  const next = Math.min(state.images - 1, Math.max(0, number + by))
  nameOf(next).then((image) => go({ image, heat: route.heat }))
}

const setHeat = (heat) => go({ ...route, heat })

const KEYS = {
  h: () => setHeat(route.heat || firstSelecting() === null ? 0 : lastHeat),
  j: () => step(1),
  k: () => step(-1),
  u: () => byId("file").click(),
  "/": () => byId("class").focus(),
  "?": () => byId("help").showModal(),
  Escape: () => { say(""); go({ heat: route.heat }) },
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return
  if (event.target.matches("select") && event.key !== "Escape") return
  const action = KEYS[event.key] ?? KEYS[event.key.toLowerCase()]
  if (action) {
    event.preventDefault()
    action()
  } else if (event.key.startsWith("Arrow") && event.target === document.body) {
    event.preventDefault()
    wall.focus(wall.focused ?? wall.firstInView())
  }
})

byId("heat").addEventListener("input", (event) => {
  rewrite({ ...route, heat: Number(event.target.value) })
  showRoute()
})
byId("class").addEventListener("change", (event) => {
  if (event.target.value) wall.scrollTo(Number(event.target.value))
  event.target.blur()
})
byId("help-button").addEventListener("click", () => byId("help").showModal())
byId("note").addEventListener("click", () => say(""))
takeFiles({ dropzone: byId("dropzone"), input: byId("file"), button: byId("choose"), onFile: search })
addEventListener("hashchange", showRoute)
addEventListener("focus", () => { if (document.body.classList.contains("ready")) pollIn(0) })

await poll()
