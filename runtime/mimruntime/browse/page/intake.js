// Images of the user's own: dropped, pasted, or chosen.

const isFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files")

export function takeFiles({ dropzone, input, button, onFile }) {
  let depth = 0
  const over = (inside) => {
    depth = Math.max(0, depth + inside)
    dropzone.hidden = depth === 0
  }
  addEventListener("dragenter", (event) => { if (isFile(event)) { event.preventDefault(); over(1) } })
  addEventListener("dragleave", (event) => { if (isFile(event)) over(-1) })
  addEventListener("dragover", (event) => { if (isFile(event)) event.preventDefault() })
  addEventListener("drop", (event) => {
    if (!isFile(event)) return
    event.preventDefault()
    depth = 0
    over(0)
    const [file] = event.dataTransfer.files
    if (file) onFile(file)
  })
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? []
    if (file) { event.preventDefault(); onFile(file) }
  })
  button.addEventListener("click", () => input.click())
  input.addEventListener("change", () => {
    const [file] = input.files
    if (file) onFile(file)
    input.value = ""
  })
}
