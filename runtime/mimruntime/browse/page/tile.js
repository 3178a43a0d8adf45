// One image of the wall or of a list: a link with its thumbnail, and a frame of the image's shape for the heat-map.

import { nameOf } from "./api.js"
import { showHeat } from "./heat.js"
import { linkTo } from "./route.js"

export function makeTile() {
  const tile = document.createElement("a")
  tile.className = "tile"
  const frame = document.createElement("span")
  frame.className = "frame"
  const image = document.createElement("img")
  image.alt = ""
  image.decoding = "async"
  image.draggable = false
  image.addEventListener("load", () => {
    frame.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`
    frame.classList.toggle("tall", image.naturalHeight > image.naturalWidth)
    tile.classList.add("loaded")
  })
  image.addEventListener("error", () => tile.classList.add("broken"))
  frame.append(image)
  tile.append(frame)
  return tile
}

// Show another image in a tile.
export async function fillTile(tile, number, { version, heat, artifact }) {
  tile.dataset.number = number
  tile.classList.remove("loaded", "broken")
  tile.href = linkTo(number, heat)
  tile.querySelector("img").src = `/thumbnails/${number}?v=${version}`
  heatTile(tile, artifact, heat)
  const name = await nameOf(number)
  if (tile.dataset.number === String(number)) {
    tile.title = name
    tile.setAttribute("aria-label", name)
  }
}

// Show nothing, and stop loading what was to be shown.
export function emptyTile(tile) {
  delete tile.dataset.number
  tile.classList.remove("loaded", "broken")
  tile.querySelector("img").removeAttribute("src")
  showHeat(tile.querySelector(".frame"), null, null, 0)
}

export function heatTile(tile, artifact, heat) {
  const { number } = tile.dataset
  if (number === undefined) return
  tile.href = linkTo(number, heat)
  showHeat(tile.querySelector(".frame"), artifact, number, artifact === null ? 0 : heat)
}
