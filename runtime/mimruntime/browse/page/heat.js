// Heat-maps: the colours of a grid of patches, laid over an image where the patches lie.

import { getJson } from "./api.js"

const AT_ONCE = 4
const known = new Map()
const waiting = []
let running = 0

// The heat-map of an artifact's place (`NUMBER` or `queries/DIGEST`); null where it has none. Few are asked for at once, the
// latest first: they are what is in view.
function getHeatmap(artifact, place) {
  const key = `${artifact}/${place}`
  if (!known.has(key)) {
    known.set(key, new Promise((resolve) => {
      waiting.push({ key, resolve })
      askNext()
    }))
  }
  return known.get(key)
}

function askNext() {
  while (running < AT_ONCE && waiting.length) {
    const { key, resolve } = waiting.pop()
    running += 1
    getJson(`/api/heatmaps/${key}`)
      .catch(() => (known.delete(key), null))
      .then(resolve)
      .finally(() => { running -= 1; askNext() })
  }
}

// Put the heat-map of `place` over what is in `frame`, an element of the image's own shape; without `heat` take it away.
export async function showHeat(frame, artifact, place, heat) {
  frame.dataset.heat = heat ? `${artifact}/${place}` : ""
  if (!heat) {
    frame.querySelector(".heat")?.remove()
    return
  }
  const wanted = frame.dataset.heat
  const found = await getHeatmap(artifact, place)
  if (frame.dataset.heat !== wanted) return
  frame.querySelector(".heat")?.remove()
  if (found) frame.append(drawn(found))
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
