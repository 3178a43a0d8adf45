// What the server is asked for; every failure becomes an Error with a sentence to show.

export async function getJson(path, options = {}) {
  let answer
  try {
    answer = await fetch(path, options)
  } catch (error) {
    if (error.name === "AbortError") throw error
    throw new Error("The server does not answer; is `mimexport browse` still running?")
  }
  const content = await answer.json().catch(() => null)
  if (!answer.ok) throw new Error(content?.error?.message ?? `The server answered ${answer.status}`)
  return content
}

export const getState = () => getJson("/api/state")
export const findNumber = async (name) => (await getJson(`/api/find?name=${encodeURIComponent(name)}`)).number
export const getNeighbours = (number, count) => getJson(`/api/neighbours/${number}?count=${count}`)
export const getQuery = (key, count) => getJson(`/api/queries/${key}?count=${count}`)
export const sendQuery = (file, count) => getJson(`/api/queries?count=${count}`, { method: "POST", body: file })

const CHUNK = 200
const chunks = new Map()

// The name of an image; names come some hundred at a time.
export async function nameOf(number) {
  const at = Math.floor(number / CHUNK)
  if (!chunks.has(at)) {
    chunks.set(at, getJson(`/api/images?start=${at * CHUNK}&count=${CHUNK}`).catch(() => (chunks.delete(at), { names: [] })))
  }
  return (await chunks.get(at)).names[number % CHUNK] ?? ""
}
