// Does with E2B's command line, and with a framework's client for it, what docs/E2B.md says
// that works; and what a busy server is like for clients that do not behave.
import { createRequire } from 'node:module'
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import http from 'node:http'
import { promisify } from 'node:util'
import { step, until } from './step.mjs'

const require = createRequire(process.argv[2] + '/')
const { Sandbox, CommandExitError, RateLimitError } = require('e2b')
const metadata = { 'axo.tier': 'oci' }

const cli = async (...args) => {
  const p = promisify(execFile)(process.execPath, [process.argv[2] + '/node_modules/@e2b/cli/dist/index.js', ...args], { env: { ...process.env, NO_COLOR: '1' } })
  p.child.stdin.end()
  return (await p).stdout
}

const box = await Sandbox.create({ metadata, timeoutMs: 600_000 })
await step('e2b sandbox list, info, exec', async () => {
  const list = JSON.parse(await cli('sandbox', 'list', '--format', 'json'))
  assert.ok(list.some((x) => x.sandboxId === box.sandboxId))
  assert.equal(JSON.parse(await cli('sandbox', 'info', box.sandboxId, '--format', 'json')).state, 'running')
  assert.match(await cli('sandbox', 'exec', box.sandboxId, 'echo', 'from', 'the', 'line'), /from the line/)
  const e = await cli('sandbox', 'exec', box.sandboxId, 'exit 7').catch((e) => e)
  assert.equal(e.code, 7)
})
await step('e2b sandbox logs, metrics', async () => {
  const logs = (await cli('sandbox', 'logs', box.sandboxId, '--format', 'json')).trim().split('\n').map((l) => JSON.parse(l))
  assert.ok(logs.some((l) => l.message === 'program started' && l.command.includes('from the line')), JSON.stringify(logs))
  const metrics = JSON.parse((await cli('sandbox', 'metrics', box.sandboxId, '--format', 'json')).trim().split('\n')[0])
  assert.ok(metrics.memTotal > 0)
})
await step('e2b sandbox kill', async () => {
  const other = await Sandbox.create({ metadata, timeoutMs: 600_000 })
  await cli('sandbox', 'kill', other.sandboxId)
  assert.equal(await other.isRunning(), false)
})
await step('@computesdk/e2b: create, runCommand, filesystem, getById, list, destroy', async () => {
  const { e2b } = require('@computesdk/e2b')
  const compute = e2b({ apiKey: process.env.E2B_API_KEY, timeout: 600_000 })
  const x = await compute.sandbox.create({ metadata })
  const r = await x.runCommand('printenv A && exit 3', { env: { A: 'two words' } })
  assert.equal(r.stdout, 'two words\n')
  assert.equal(r.exitCode, 3)
  await x.filesystem.mkdir('/home/user/d')
  await x.filesystem.writeFile('/home/user/d/f', 'content')
  assert.equal(await x.filesystem.readFile('/home/user/d/f'), 'content')
  assert.deepEqual((await x.filesystem.readdir('/home/user/d')).map((e) => e.name), ['f'])
  assert.equal(await x.filesystem.exists('/home/user/d/g'), false)
  await x.filesystem.remove('/home/user/d')
  assert.equal((await compute.sandbox.getById(x.sandboxId)).sandboxId, x.sandboxId)
  assert.ok((await compute.sandbox.list()).some((y) => y.sandboxId === x.sandboxId))
  await x.destroy()
  assert.equal(await compute.sandbox.getById(x.sandboxId), null)
})
await step('100 clients at once', async () => {
  const out = await Promise.all(
    Array.from({ length: 100 }, async (_, i) => {
      const b = await Sandbox.create({ metadata, timeoutMs: 600_000, requestTimeoutMs: 300_000 })
      const r = await b.commands.run(`echo ${i}`, { requestTimeoutMs: 300_000, timeoutMs: 300_000 })
      assert.equal(await b.kill({ requestTimeoutMs: 300_000 }), true)
      return r.stdout
    }),
  )
  assert.deepEqual(out, Array.from({ length: 100 }, (_, i) => `${i}\n`))
})
await step('more than a quota is 429, and no less than it is had', async () => {
  const apiKey = process.env.SMALL_KEY
  const got = await Promise.all(Array.from({ length: 20 }, () => Sandbox.create({ apiKey, metadata, retryCount: 0 }).catch((e) => e)))
  const boxes = got.filter((x) => x instanceof Sandbox)
  assert.equal(boxes.length, 5)
  for (const e of got.filter((x) => !(x instanceof Sandbox))) assert.ok(e instanceof RateLimitError, String(e))
  await Promise.all(boxes.map((b) => b.kill()))
})
await step('who does not read slows nobody, and his program waits for him', async () => {
  const frame = (v) => {
    const b = Buffer.from(JSON.stringify(v))
    const h = Buffer.alloc(5)
    h.writeUInt32BE(b.length, 1)
    return Buffer.concat([h, b])
  }
  const slow = []
  for (let i = 0; i < 8; i++) {
    const r = http.request(process.env.E2B_API_URL + '/process.Process/Start', {
      method: 'POST',
      agent: false,
      headers: {
        'content-type': 'application/connect+json', 'connect-protocol-version': '1', 'x-access-token': box.envdAccessToken, 'e2b-sandbox-id': box.sandboxId, 'e2b-sandbox-port': '49983',
      },
    })
    r.on('error', () => {})
    r.on('response', (res) => res.pause())
    r.end(frame({ process: { cmd: '/bin/bash', args: ['-c', `exec 3>/tmp/slow${i}; while head -c 100000 /dev/zero | tr '\\0' x; do echo 1 >&3; done`] } }))
    slow.push(r)
  }
  await until('programs that write', async () => (await box.commands.list()).length === 8)
  for (let i = 0; i < 20; i++) assert.equal((await box.commands.run(`echo ${i}`)).stdout, `${i}\n`)
  let wrote = ''
  await until('programs that wait', async () => {
    const now = (await box.commands.run('stat -c %s /tmp/slow*')).stdout
    return now === wrote || !(wrote = now)
  })
  for (const n of wrote.trim().split('\n')) assert.ok((n / 2) * 100_000 < 64 << 20, wrote)
  for (const r of slow) r.destroy()
  const list = await box.commands.list()
  assert.equal(list.length, 8)
  for (const p of list) assert.equal(await box.commands.kill(p.pid), true)
})
await step('a program that a client has left is there for the next', async () => {
  const c = new AbortController()
  const h = await box.commands.run('read x; echo got $x', { background: true, stdin: true, signal: c.signal })
  c.abort()
  const e = await h.wait().catch((e) => e)
  assert.ok(!(e instanceof CommandExitError), String(e))
  const again = await (await Sandbox.connect(box.sandboxId)).commands.connect(h.pid)
  await box.commands.sendStdin(h.pid, 'it\n')
  assert.equal((await again.wait()).stdout, 'got it\n')
})
await box.kill()
