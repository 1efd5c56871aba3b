// What the scripts beside it share: each step is a line of JSON, its name, and what went
// wrong if something did.
export async function step(name, f) {
  try {
    await f()
    console.log(JSON.stringify({ name }))
  } catch (e) {
    console.log(JSON.stringify({ name, error: String(e?.stack ?? e) }))
  }
}

export const until = async (what, f) => {
  for (let i = 0; i < 1500; i++) {
    if (await f()) return
    await new Promise((r) => setTimeout(r, 20))
  }
  throw new Error('waited in vain for ' + what)
}
