// The wall: as many tiles as are in view, whatever the number of images; those that leave are used again.

import { emptyTile, fillTile, heatTile, makeTile } from "./tile.js"

const OVERSCAN_ROWS = 2
const SMALLEST = 112
const GAP = 6
const SETTLED_MS = 80

export class Wall {
  constructor(scroller, sheet) {
    this.scroller = scroller
    this.sheet = sheet
    this.count = 0
    this.shown = new Map()
    this.spare = []
    this.view = { version: "", heat: 0, artifact: null }
    this.current = null
    scroller.addEventListener("scroll", () => this.schedule(), { passive: true })
    new ResizeObserver(() => this.layout()).observe(scroller)
    sheet.addEventListener("keydown", (event) => this.move(event))
    sheet.addEventListener("focusin", (event) => {
      const tile = event.target.closest(".tile")
      if (tile) this.focused = Number(tile.dataset.number)
    })
  }

  show(count, view) {
    this.count = count
    this.view = view
    this.layout()
  }

  setHeat(heat, artifact) {
    this.view = { ...this.view, heat, artifact }
    for (const tile of this.shown.values()) heatTile(tile, artifact, heat)
  }

  setCurrent(number) {
    this.shown.get(this.current)?.classList.remove("current")
    this.current = number
    this.shown.get(number)?.classList.add("current")
    if (number !== null) this.reveal(number)
  }

  layout() {
    const width = this.scroller.clientWidth - 2 * GAP
    if (width <= 0) return
    const first = this.firstInView()
    this.columns = Math.max(2, Math.floor((width + GAP) / (SMALLEST + GAP)))
    this.step = (width + GAP) / this.columns
    this.sheet.style.height = `${Math.ceil(this.count / this.columns) * this.step + GAP}px`
    this.sheet.style.setProperty("--edge", `${this.step - GAP}px`)
    for (const tile of this.shown.values()) this.place(tile)
    if (first) this.scroller.scrollTop = Math.floor(first / this.columns) * this.step
    this.draw()
    if (this.current !== null) this.reveal(this.current)
  }

  firstInView() {
    return this.columns ? Math.floor(this.scroller.scrollTop / this.step) * this.columns : 0
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw() })
  }

  draw() {
    if (!this.columns || !this.count) return
    const top = Math.floor(this.scroller.scrollTop / this.step) - OVERSCAN_ROWS
    const rows = Math.ceil(this.scroller.clientHeight / this.step) + 2 * OVERSCAN_ROWS
    const from = Math.max(0, top * this.columns)
    const to = Math.min(this.count, (top + rows) * this.columns)
    for (const [number, tile] of this.shown) {
      if (number < from || number >= to) {
        this.shown.delete(number)
        this.spare.push(tile)
        emptyTile(tile)
      }
    }
    // Whoever jumps from place to place would have hundreds of thumbnails loaded in vain: they come once the wall rests.
    const jumped = Math.abs(this.scroller.scrollTop - (this.drawnAt ?? 0)) > this.scroller.clientHeight
    this.drawnAt = this.scroller.scrollTop
    for (let number = from; number < to; number += 1) if (!this.shown.has(number)) this.add(number, jumped)
    if (jumped) {
      clearTimeout(this.resting)
      this.resting = setTimeout(() => this.fillEmpty(), SETTLED_MS)
    }
    for (const tile of this.spare) tile.hidden = true
  }

  add(number, empty) {
    const tile = this.spare.pop() ?? this.sheet.appendChild(makeTile())
    tile.hidden = false
    tile.classList.toggle("current", number === this.current)
    this.shown.set(number, tile)
    if (empty) tile.dataset.number = number
    else fillTile(tile, number, this.view)
    this.place(tile)
  }

  fillEmpty() {
    for (const [number, tile] of this.shown) {
      if (!tile.querySelector("img").hasAttribute("src")) fillTile(tile, number, this.view)
    }
  }

  place(tile) {
    const number = Number(tile.dataset.number)
    const x = GAP + (number % this.columns) * this.step
    const y = GAP + Math.floor(number / this.columns) * this.step
    tile.style.transform = `translate(${x}px, ${y}px)`
  }

  reveal(number) {
    if (!this.columns) return
    const top = Math.floor(number / this.columns) * this.step
    const { scrollTop, clientHeight } = this.scroller
    if (top < scrollTop || top + this.step > scrollTop + clientHeight) {
      this.scroller.scrollTop = Math.max(0, top - (clientHeight - this.step) / 2)
    }
    this.draw()
  }

  scrollTo(number) {
    this.focused = number
    this.scroller.scrollTop = Math.floor(number / this.columns) * this.step
    this.draw()
  }

  hasFocus() {
    return this.scroller.contains(document.activeElement)
  }

  focus(number) {
    this.reveal(number)
    this.shown.get(number)?.focus({ preventScroll: true })
  }

  move(event) {
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.step)) * this.columns
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page,
      Home: -this.count, End: this.count,
    }
    const step = steps[event.key]
    if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    this.focus(Math.min(this.count - 1, Math.max(0, (this.focused ?? 0) + step)))
  }
}
