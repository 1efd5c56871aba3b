// What a program that uses the npm package e2b waits for, in milliseconds: a line of JSON
// with numbers by name. Arguments: where the package is, the tier, and how long after a
// sandbox another one stands ready.
import { createRequire } from 'node:module'

const { Sandbox } = createRequire(process.argv[2] + '/')('e2b')
const [tier, settle] = [process.argv[3], +process.argv[4]]
const opts = { metadata: { 'axo.tier': tier }, timeoutMs: 600_000 }
const now = () => performance.now()
const sleep = (ms) => new Promise((r) => setTimeout(r, ms))
const at = (list, p) => list.sort((a, b) => a - b)[Math.min(list.length - 1, Math.floor(list.length * p))]
const out = {}

// The first is for the connections, the compiler of JavaScript, and the pool, which makes
// ahead what was asked for.
const warm = await Sandbox.create(opts)
for (let i = 0; i < 20; i++) await warm.commands.run('true')
await warm.kill()
await sleep(settle * 2)

const created = []
for (let i = 0; i < 20; i++) {
  const t = now()
  const b = await Sandbox.create(opts)
  await b.commands.run('true')
  created.push(now() - t)
  await b.kill()
  await sleep(settle)
}
out['create-run-p50-ms'] = at(created, 0.5)
out['create-run-p99-ms'] = at(created, 0.99)

const box = await Sandbox.create(opts)
const ran = []
for (let i = 0; i < 200; i++) {
  const t = now()
  await box.commands.run('true')
  ran.push(now() - t)
}
out['run-p50-ms'] = at(ran, 0.5)
out['run-p99-ms'] = at(ran, 0.99)

const data = new Uint8Array(1 << 20).map((_, i) => (i * 7) % 251).buffer
const moved = []
for (let i = 0; i < 60; i++) {
  const t = now()
  await box.files.write('f', data)
  const back = await box.files.read('f', { format: 'bytes' })
  if (back.length !== data.byteLength) throw new Error('the file is another one')
  moved.push(now() - t)
}
out['files-MB/s'] = (2 * (1 << 20)) / 1e3 / at(moved, 0.5)
await box.kill()

if (tier === 'oci') {
  await sleep(settle * 2)
  const all = await Promise.all(
    Array.from({ length: 50 }, async () => {
      const t = now()
      const b = await Sandbox.create(opts)
      await b.commands.run('true')
      return [now() - t, b]
    }),
  )
  const took = all.map((x) => x[0])
  out['burst50-p50-ms'] = at(took, 0.5)
  out['burst50-p99-ms'] = at(took, 0.99)
  await Promise.all(all.map((x) => x[1].kill()))
}
console.log(JSON.stringify(out))
