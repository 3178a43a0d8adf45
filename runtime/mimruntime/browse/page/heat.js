// Heat-maps: the colours of a grid of patches, laid over an image where the patches lie.

import { getJson } from "./api.js"

const AT_ONCE = 4
const KEPT = 2000
const known = new Map()
const waiting = new Map()
let running = 0

// Put the heat-map of an artifact's place (`NUMBER` or `queries/DIGEST`) over what is in `frame`, an element of the image's own
// shape; without `heat` take it away.
export function showHeat(frame, artifact, place, heat) {
  const key = heat ? `${artifact}/${place}` : ""
  if (frame.dataset.heat === key) return
  frame.dataset.heat = key
  frame.querySelector(".heat")?.remove()
  waiting.delete(frame)
  if (!key) return
  waiting.set(frame, key)
  queueMicrotask(askNext) // once the frame is on the page
}

// Few are asked for at once, what is in view first; what has left the page meanwhile is not asked for.
function askNext() {
  while (running < AT_ONCE && waiting.size) {
    const frames = [...waiting.keys()]
    const frame = frames.find(isInView) ?? frames[0]
    const key = waiting.get(frame)
    waiting.delete(frame)
    if (!frame.isConnected) continue
    running += 1
    get(key)
      .then((found) => { if (found && frame.dataset.heat === key) put(frame, drawn(found)) })
      .catch(() => { frame.dataset.heat = "" })
      .finally(() => { running -= 1; askNext() })
  }
}

function get(key) {
  if (!known.has(key)) {
    known.set(key, getJson(`/api/heatmaps/${key}`))
    known.get(key).catch(() => known.delete(key))
    if (known.size > KEPT) known.delete(known.keys().next().value)
  }
  return known.get(key)
}

function put(frame, canvas) {
  frame.querySelector(".heat")?.remove()
  frame.append(canvas)
}

function isInView(frame) {
  const { top, bottom, height } = frame.getBoundingClientRect()
  return height > 0 && bottom > 0 && top < innerHeight
}

function drawn({ box, rows, columns, rgba }) {
  const canvas = document.createElement("canvas")
  canvas.className = "heat"
  canvas.width = columns
  canvas.height = rows
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(rgba), columns, rows), 0, 0)
  const [left, top, right, bottom] = box.map((share) => share * 100)
  Object.assign(canvas.style, {
    left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%`,
  })
  return canvas
}
