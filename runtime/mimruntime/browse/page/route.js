// A view as the address's fragment: #image=NAME or #query=DIGEST, and heat=PERCENT; whoever opens it sees the same.

export function readRoute() {
  const given = new URLSearchParams(location.hash.slice(1))
  const heat = Number(given.get("heat") ?? 0)
  return {
    image: given.get("image"),
    number: given.has("n") ? Number(given.get("n")) : null,
    query: given.get("query"),
    heat: Number.isFinite(heat) ? Math.min(100, Math.max(0, heat)) : 0,
  }
}

function fragment({ image, query, heat }) {
  const kept = new URLSearchParams()
  if (image) kept.set("image", image)
  if (query) kept.set("query", query)
  if (heat) kept.set("heat", heat)
  // Slashes of names stay readable.
  return "#" + kept.toString().replaceAll("%2F", "/")
}

export const go = (route) => { location.hash = fragment(route) }
export const rewrite = (route) => history.replaceState(null, "", fragment(route))
// Where a tile leads before its name is known.
export const linkTo = (number, heat) => `#n=${number}${heat ? `&heat=${heat}` : ""}`
