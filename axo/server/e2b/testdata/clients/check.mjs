// Does with the npm package e2b what docs/E2B.md says that works. Each step is a line
// of JSON: its name, and what went wrong if something did.
import { createRequire } from 'node:module'
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { step, until } from './step.mjs'

const require = createRequire(process.argv[2] + '/')
const { Sandbox, CommandExitError, TimeoutError, FileNotFoundError, SandboxNotFoundError, SandboxError } = require('e2b')

const tier = process.env.AXO_TIER
const box = await Sandbox.create({ metadata: { who: 'js', 'axo.tier': tier, run: String(process.pid) }, envs: { OF_BOX: 'box' }, timeoutMs: 600_000 })

await step('Sandbox.create, getInfo', async () => {
  const i = await box.getInfo()
  assert.equal(i.sandboxId, box.sandboxId)
  assert.equal(i.templateId, 'base')
  assert.equal(i.metadata.who, 'js')
  assert.equal(i.state, 'running')
  assert.ok(i.endAt - i.startedAt > 100_000)
})
await step('isRunning', async () => assert.equal(await box.isRunning(), true))
await step('commands.run: output, exit code, cwd, envs', async () => {
  const r = await box.commands.run('echo out; echo err >&2; pwd; echo $OF_BOX $OF_RUN $E2B_SANDBOX; whoami', { cwd: '/tmp', envs: { OF_RUN: 'run' } })
  assert.equal(r.stdout, 'out\n/tmp\nbox run true\nuser\n')
  assert.equal(r.stderr, 'err\n')
  assert.equal(r.exitCode, 0)
  const e = await box.commands.run('echo before; exit 7').catch((e) => e)
  assert.ok(e instanceof CommandExitError)
  assert.equal(e.exitCode, 7)
  assert.equal(e.stdout, 'before\n')
})
await step('commands.run: output as it comes', async () => {
  const got = []
  const r = await box.commands.run('for i in 1 2 3; do echo $i; done', { onStdout: (s) => got.push(s) })
  assert.equal(got.join(''), '1\n2\n3\n')
  assert.equal(r.stdout, '1\n2\n3\n')
})
await step('commands.run: 4 MiB of output', async () => {
  const r = await box.commands.run('head -c 4194304 /dev/zero | tr "\\0" x')
  assert.equal(r.stdout.length, 4194304)
})
await step('commands.run: killed at its timeout', async () => {
  const e = await box.commands.run('echo $$ > /tmp/pid; exec sleep 60', { timeoutMs: 1000 }).catch((e) => e)
  assert.ok(e instanceof TimeoutError, String(e))
  await until('the program to be gone', async () => (await box.commands.list()).length === 0)
})
await step('commands: background, list, kill', async () => {
  const h = await box.commands.run('exec sleep 60', { background: true })
  const list = await box.commands.list()
  assert.ok(list.some((p) => p.pid === h.pid && p.cmd === '/bin/bash'))
  assert.equal(await h.kill(), true)
  const e = await h.wait().catch((e) => e)
  assert.ok(e instanceof CommandExitError, String(e))
  assert.equal(await box.commands.kill(h.pid), false)
})
await step('commands: stdin, closeStdin', async () => {
  const h = await box.commands.run('cat; echo end', { background: true, stdin: true })
  await box.commands.sendStdin(h.pid, 'one\n')
  await box.commands.sendStdin(h.pid, 'two\n')
  await box.commands.closeStdin(h.pid)
  assert.equal((await h.wait()).stdout, 'one\ntwo\nend\n')
})
await step('commands: a program goes on without its client; connect', async () => {
  const h = await box.commands.run('read x; echo got $x', { background: true, stdin: true })
  await h.disconnect()
  const again = await box.commands.connect(h.pid)
  await box.commands.sendStdin(h.pid, 'it\n')
  assert.equal((await again.wait()).stdout, 'got it\n')
})
await step('pty: create, input, resize', async () => {
  let text = ''
  const t = await box.pty.create({ cols: 80, rows: 24, onData: (b) => (text += new TextDecoder().decode(b)), timeoutMs: 60_000 })
  await box.pty.resize(t.pid, { cols: 132, rows: 40 })
  await box.pty.sendInput(t.pid, new TextEncoder().encode('stty size; exit 3\n'))
  const e = await t.wait().catch((e) => e)
  assert.equal(e.exitCode, 3)
  assert.match(text, /40 132/)
})
await step('files: write, read, exists, getInfo', async () => {
  const w = await box.files.write('notes/a.txt', 'héllo')
  assert.equal(w.path, '/home/user/notes/a.txt')
  assert.equal(await box.files.read('notes/a.txt'), 'héllo')
  assert.equal(await box.files.read('/home/user/notes/a.txt'), 'héllo')
  assert.equal(await box.files.exists('notes/a.txt'), true)
  assert.equal(await box.files.exists('notes/none'), false)
  const i = await box.files.getInfo('notes/a.txt')
  assert.equal(i.type, 'file')
  assert.equal(i.size, 6)
  assert.equal(i.owner, 'user')
  const e = await box.files.read('none').catch((e) => e)
  assert.ok(e instanceof FileNotFoundError)
})
await step('files: many at once, bytes, blob, stream, gzip', async () => {
  const bytes = new Uint8Array(1 << 20).map((_, i) => (i * 7) % 251)
  await box.files.write([{ path: 'm/1', data: 'one' }, { path: '/tmp/m/2', data: bytes.buffer }])
  assert.equal(await box.files.read('m/1'), 'one')
  assert.deepEqual(await box.files.read('/tmp/m/2', { format: 'bytes' }), bytes)
  assert.equal((await box.files.read('/tmp/m/2', { format: 'blob' })).size, bytes.length)
  let n = 0
  for await (const c of await box.files.read('/tmp/m/2', { format: 'stream' })) n += c.length
  assert.equal(n, bytes.length)
  await box.files.write('z', 'zipped', { gzip: true })
  assert.equal(await box.files.read('z', { gzip: true }), 'zipped')
})
await step('files: list, makeDir, rename, remove', async () => {
  assert.equal(await box.files.makeDir('d/e'), true)
  assert.equal(await box.files.makeDir('d/e'), false)
  await box.files.write('d/e/f', 'x')
  await box.commands.run('ln -s e/f d/link')
  const all = await box.files.list('d', { depth: 2 })
  assert.deepEqual(all.map((x) => x.path), ['/home/user/d/e', '/home/user/d/e/f', '/home/user/d/link'])
  assert.equal(all[2].symlinkTarget, '/home/user/d/e/f')
  await box.files.rename('d/e/f', 'd/g')
  assert.equal(await box.files.exists('d/e/f'), false)
  await box.files.remove('d')
  assert.equal(await box.files.exists('d'), false)
  await box.files.remove('d')
  await assert.rejects(box.files.list('d'), FileNotFoundError)
})
await step('files: watchDir', async () => {
  await box.files.makeDir('w/sub')
  const seen = []
  const h = await box.files.watchDir('w', (e) => seen.push(e.type + ' ' + e.name), { recursive: true })
  await box.files.write('w/a', '1')
  await box.commands.run('echo 2 > w/sub/b')
  await until('events: ' + seen, () => seen.some((s) => s.endsWith(' a')) && seen.some((s) => s.endsWith(' sub/b')))
  await box.commands.run('rm w/sub/b')
  await until('its removal: ' + seen, () => seen.includes('remove sub/b'))
  await h.stop()
})
await step('files: signed URLs', async () => {
  await box.files.write('signed', 'by url')
  const url = await box.downloadUrl('signed', { useSignatureExpiration: 60 })
  assert.equal(await (await fetch(url)).text(), 'by url')
  const part = await fetch(url, { headers: { Range: 'bytes=3-' } })
  assert.equal(part.status, 206)
  assert.equal(await part.text(), 'url')
  assert.equal((await fetch(url.replace('path=signed', 'path=other'))).status, 401)
  const up = await box.uploadUrl('up', { useSignatureExpiration: 60 })
  const form = new FormData()
  form.append('file', new Blob(['uploaded']), 'up')
  assert.equal((await fetch(up, { method: 'POST', body: form })).status, 200)
  assert.equal(await box.files.read('up'), 'uploaded')
})
await step('list: filters and pages', async () => {
  const other = await Sandbox.create({ metadata: { who: 'js', 'axo.tier': tier, run: String(process.pid) } })
  try {
    const p = Sandbox.list({ query: { metadata: { run: String(process.pid) }, state: ['running'] }, limit: 1 })
    const ids = []
    while (p.hasNext) ids.push(...(await p.nextItems()).map((x) => x.sandboxId))
    assert.deepEqual(ids, [other.sandboxId, box.sandboxId])
  } finally {
    assert.equal(await other.kill(), true)
  }
  assert.equal(await Sandbox.kill(other.sandboxId), false)
  await assert.rejects(Sandbox.connect(other.sandboxId), SandboxNotFoundError)
})
await step('setTimeout, connect', async () => {
  await box.setTimeout(600_000)
  const again = await Sandbox.connect(box.sandboxId, { timeoutMs: 1000 })
  assert.equal((await again.commands.run('echo hi')).stdout, 'hi\n')
  assert.ok((await again.getInfo()).endAt - Date.now() > 500_000)
})
await step('pause, connect: programs go on', async () => {
  const h = await box.commands.run('read x; echo got $x', { background: true, stdin: true })
  assert.equal(await box.pause(), true)
  assert.equal((await box.getInfo()).state, 'paused')
  assert.equal(await box.isRunning(), false)
  assert.equal(await box.pause(), false)
  await box.connect({ timeoutMs: 600_000 })
  const again = await box.commands.connect(h.pid)
  await box.commands.sendStdin(h.pid, 'it\n')
  assert.equal((await again.wait()).stdout, 'got it\n')
})
await step('onTimeout: pause, autoResume', async () => {
  const b = await Sandbox.create({ metadata: { 'axo.tier': tier }, timeoutMs: 600_000, lifecycle: { onTimeout: 'pause', autoResume: true } })
  await b.files.write('kept', 'so')
  await b.setTimeout(0)
  await until('its pause', async () => (await b.getInfo()).state === 'paused')
  assert.equal(await b.files.read('kept'), 'so')
  const i = await b.getInfo()
  assert.equal(i.state, 'running')
  assert.deepEqual(i.lifecycle, { onTimeout: 'pause', autoResume: true })
  await b.kill()
})
if (tier !== 'oci') {
  await step('createSnapshot, create from it, deleteSnapshot', async () => {
    await box.files.write('mark', 'then')
    const x = await box.createSnapshot()
    await box.files.write('mark', 'now')
    const b = await Sandbox.create(x.snapshotId, { timeoutMs: 600_000 })
    assert.equal(await b.files.read('mark'), 'then')
    assert.equal((await b.commands.run('whoami')).stdout, 'user\n')
    await b.kill()
    assert.equal(await Sandbox.deleteSnapshot(x.snapshotId), true)
    assert.equal(await Sandbox.deleteSnapshot(x.snapshotId), false)
  })
}
await step('getMetrics', async () => {
  const busy = await box.commands.run('while :; do :; done', { background: true })
  await box.commands.run('head -c 8000000 /dev/zero > /tmp/eight')
  const [m] = await box.getMetrics()
  assert.ok(m.cpuCount >= 1 && m.cpuUsedPct > 0 && m.cpuUsedPct <= 100, JSON.stringify(m))
  assert.ok(m.memUsed > 1e6 && m.memUsed < m.memTotal && m.diskUsed >= 8e6 && m.diskUsed < m.diskTotal, JSON.stringify(m))
  assert.ok(Math.abs(m.timestamp - Date.now()) < 60_000)
  await busy.kill()
  await box.commands.run('rm /tmp/eight')
  assert.deepEqual(await box.getMetrics({ end: new Date(m.timestamp - 10_000) }), [])
})
await step('network: what the daemon does not grant is refused', async () => {
  const i = await box.getInfo()
  assert.equal(i.allowInternetAccess, false)
  await assert.rejects(Sandbox.create({ network: { allowOut: ['example.org'], denyOut: ['0.0.0.0/0'] } }), /policy does not grant/)
  await assert.rejects(Sandbox.create({ network: { denyOut: ['example.org'] } }), /want an address/)
  await assert.rejects(box.updateNetwork({ allowInternetAccess: false }), /network/)
})
await step('ports: HTTP into a sandbox', async () => {
  const h = await box.commands.run('exec python3 -m http.server 8123 --bind 127.0.0.1 --directory /home/user/notes', { background: true })
  const headers = { 'E2b-Sandbox-Id': box.sandboxId, 'E2b-Sandbox-Port': '8123' }
  await until('the server', async () => (await fetch(process.env.E2B_API_URL + '/a.txt', { headers })).status === 200)
  const none = await fetch(process.env.E2B_API_URL, { headers: { ...headers, 'E2b-Sandbox-Port': '8124' } })
  assert.equal(none.status, 502)
  assert.equal((await none.json()).message, 'The sandbox is running but port is not open')
  await h.kill()
})
await step('what is not there is refused, with its name', async () => {
  await assert.rejects(Sandbox.create('no-such-template'), SandboxError)
})
await step('another key, and none', async () => {
  await assert.rejects(Sandbox.connect(box.sandboxId, { apiKey: process.env.OTHER_KEY }), SandboxNotFoundError)
  await assert.rejects(Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), /401|nauthor|key/i)
})
await step('commands.run: user: root', async () => {
  const r = await box.commands.run('id -un; echo $HOME; pwd', { user: 'root' })
  assert.equal(r.stdout, 'root\n/root\n/root\n')
  await assert.rejects(box.commands.run('true', { user: 'nobody-has-this-name' }))
})
await step('files: paths that lead nowhere', async () => {
  await assert.rejects(box.files.makeDir('/proc/d'))
  await assert.rejects(box.files.write('/proc/d/f', 'x'))
  await assert.rejects(box.files.write('/proc/sys/kernel/hostname', 'x'))
  await assert.rejects(box.files.read('/proc/self/root/etc/hostname'))
  await assert.rejects(box.files.read('a\0b'))
  await assert.rejects(box.files.read('/' + 'x/'.repeat(4096)))
  await assert.rejects(box.files.write('x'.repeat(300), 'x'))
  await box.commands.run('ln -s /etc/passwd out; mkfifo pipe')
  await box.files.write('out', 'mine')
  assert.match(await box.files.read('/../../etc/passwd'), /root/)
  await assert.rejects(box.files.read('pipe'))
  assert.equal((await box.commands.run('echo still')).stdout, 'still\n')
})
if (tier === 'oci') {
  await step("files: user: root: refused on the host's own system, with the reason", async () => {
    await assert.rejects(box.files.list('/root', { user: 'root' }), /root file system of the sandbox's own/)
    await assert.rejects(box.files.write('/dev/x', 'x', { user: 'root' }), /root file system of the sandbox's own/)
  })
} else {
  await step('files: user: root', async () => {
    await box.files.write('mine', 'x', { user: 'root' })
    assert.equal((await box.files.getInfo('mine', { user: 'root' })).path, '/root/mine')
    assert.equal((await box.commands.run('stat -c %U mine', { user: 'root' })).stdout, 'root\n')
    await assert.rejects(box.files.read('x', { user: 'nobody-has-this-name' }))
    const seen = []
    const h = await box.files.watchDir('/root', (e) => seen.push(e.type + ' ' + e.name), { user: 'root' })
    await box.files.write('/root/watched', 'x', { user: 'root' })
    await until('events of root: ' + seen, () => seen.some((e) => e.endsWith(' watched')))
    await h.stop()
  })
}
await step('kill: what runs is told, and then it is gone', async () => {
  const h = await box.commands.run('exec sleep 60', { background: true })
  assert.equal(await box.kill(), true)
  const e = await h.wait().catch((e) => e)
  assert.ok(e instanceof Error && !(e instanceof CommandExitError), String(e))
  assert.equal(await box.isRunning(), false)
})
if (tier === 'microvm') {
  await step('a machine that dies is an error for who waits, and no result', async () => {
    const b = await Sandbox.create({ metadata: { 'axo.tier': tier }, timeoutMs: 600_000 })
    try {
      const h = await b.commands.run('echo begun; exec sleep 600', { background: true, timeoutMs: 0 })
      let killed = 0
      for (const pid of readdirSync('/proc').filter((x) => /^[0-9]+$/.test(x))) {
        try {
          if (!readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('qemu')) continue
          const parent = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')[1]
          // The daemon's of this test, and no other's.
          if (readFileSync(`/proc/${parent}/cmdline`, 'utf8').includes(process.env.AXO_STATE)) killed += process.kill(+pid, 'SIGKILL')
        } catch (e) {
          if (!['ENOENT', 'ESRCH'].includes(e.code)) throw e
        }
      }
      assert.ok(killed > 0)
      const e = await h.wait().catch((e) => e)
      assert.ok(e instanceof Error && !(e instanceof CommandExitError), String(e))
      await until('that it does not run', async () => !(await b.isRunning()))
      await assert.rejects(b.commands.run('true'))
    } finally {
      await b.kill()
    }
  })
}
