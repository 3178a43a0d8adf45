// The query and its neighbours: a column for each artifact, what one of them alone found is marked.

import { showHeat } from "./heat.js"
import { fillTile, heatTile, makeTile } from "./tile.js"

export const COUNT = 24

function element(kind, className, text) {
  const made = document.createElement(kind)
  if (className) made.className = className
  if (text !== undefined) made.textContent = text
  return made
}

export const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`

export class Results {
  constructor(section) {
    this.section = section
    this.answer = null
    section.addEventListener("keydown", (event) => this.move(event))
  }

  hasFocus() {
    return this.section.contains(document.activeElement)
  }

  focus() {
    this.section.querySelector(".neighbours .tile")?.focus({ preventScroll: true })
  }

  clear() {
    this.answer = null
    this.section.hidden = true
    this.section.replaceChildren()
  }

  show(answer, state, heat) {
    this.answer = answer
    this.state = state
    this.heat = heat
    this.section.replaceChildren(this.heading(), this.columns())
    this.section.hidden = false
  }

  setHeat(heat) {
    this.heat = heat
    for (const column of this.section.querySelectorAll(".column")) {
      const artifact = this.state.artifacts[column.dataset.artifact].selection ? Number(column.dataset.artifact) : null
      for (const tile of column.querySelectorAll(".tile")) heatTile(tile, artifact, heat)
      this.heatQuery(column.querySelector(".query .frame"), artifact)
    }
  }

  // The running k-NN moves while images are embedded.
  update(state) {
    this.state = state
    for (const column of this.section.querySelectorAll(".column")) {
      column.querySelector(".knn")?.replaceWith(knn(state.artifacts[column.dataset.artifact]))
    }
  }

  heading() {
    const { name, label, columns } = this.answer
    const heading = element("div", "heading")
    heading.append(element("h2", "", name ?? "Your image"))
    if (label !== null) heading.append(element("p", "class", `class ${label}`))
    if (columns.length > 1 && columns.every((column) => !column.error)) {
      const sets = columns.map(({ neighbours }) => new Set(neighbours.map(({ number }) => number)))
      const shared = [...sets[0]].filter((number) => sets.every((set) => set.has(number))).length
      heading.append(element("p", "shared", `${shared} of ${sets[0].size} neighbours are the same`))
    }
    return heading
  }

  columns() {
    const row = element("div", "columns")
    row.append(...this.answer.columns.map((column, at) => this.column(column, at)))
    return row
  }

  column({ neighbours, predicted, error }, at) {
    const about = this.state.artifacts[at]
    const column = element("article", "column")
    column.dataset.artifact = at
    const head = element("header", "")
    const text = element("div", "about")
    text.append(element("h3", "", about.name), element("p", "how", `${about.precision}, ${about.dim} numbers`))
    text.append(knn(about))
    if (predicted !== null) text.append(this.verdict(predicted))
    head.append(this.query(at), text)
    const list = element("ol", "neighbours")
    list.append(...neighbours.map((each) => this.neighbour(each, at)))
    column.append(head, error ? element("p", "error", error) : list)
    return column
  }

  verdict(predicted) {
    const { label } = this.answer
    const verdict = element("p", "verdict", `its neighbours say: ${predicted}`)
    if (label !== null) verdict.classList.add(predicted === label ? "right" : "wrong")
    return verdict
  }

  query(at) {
    const box = element("span", "query")
    const frame = element("span", "frame")
    const image = element("img", "")
    image.alt = "the query"
    image.addEventListener("load", () => {
      const shape = image.naturalWidth / image.naturalHeight
      frame.style.aspectRatio = shape
      frame.style.width = `calc(var(--height) * ${Math.min(1.4, shape)})`
    })
    const { number, key } = this.answer
    image.addEventListener("error", () => box.classList.add("broken"))
    image.src = key ? `/queries/${key}` : `/pictures/${number}?v=${this.state.version}`
    frame.append(image)
    box.append(frame)
    this.heatQuery(frame, this.state.artifacts[at].selection ? at : null)
    return box
  }

  heatQuery(frame, artifact) {
    const { number, key } = this.answer
    if (frame) showHeat(frame, artifact, key ? `queries/${key}` : number, artifact === null ? 0 : this.heat)
  }

  neighbour({ number, name, label, cosine }, at) {
    const item = element("li", "")
    const tile = makeTile()
    const about = this.state.artifacts[at]
    fillTile(tile, number, { version: this.state.version, heat: this.heat, artifact: about.selection ? at : null })
    const others = this.answer.columns.filter((_, other) => other !== at && !this.answer.columns[other].error)
    if (others.length && !others.some(({ neighbours }) => neighbours.some((each) => each.number === number))) {
      item.classList.add("alone")
      item.title = "found by this artifact alone"
    }
    if (label !== null && this.answer.label !== null) item.classList.add(label === this.answer.label ? "right" : "wrong")
    const caption = element("span", "caption")
    caption.append(element("span", "score", cosine.toFixed(4)), element("span", "label", label ?? name.split("/").at(-1)))
    item.append(tile, caption)
    return item
  }

  move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down" }[event.key]
    const tile = event.target.closest(".tile")
    if (!step || !tile || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    const tiles = [...this.section.querySelectorAll(".tile")]
    const next = typeof step === "number" ? tiles[tiles.indexOf(tile) + step] : above(tile, tiles, step)
    next?.focus()
  }
}

// The tile straight above or below.
function above(tile, tiles, direction) {
  const here = tile.getBoundingClientRect()
  const beyond = tiles.filter((each) => {
    const there = each.getBoundingClientRect()
    const apart = there.top - here.top
    return Math.abs(there.left - here.left) < here.width / 2 && (direction === "up" ? apart < -1 : apart > 1)
  })
  return direction === "up" ? beyond.at(-1) : beyond[0]
}

function knn({ right, judged }) {
  const line = element("p", "knn")
  if (judged) {
    line.append("k-NN ", element("strong", "", percent(right, judged)), ` of ${judged.toLocaleString("en")} images`)
    line.title = "Share of images, each left out once, whose 20 nearest neighbours vote for the right class"
  }
  return line
}
