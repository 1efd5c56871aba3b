// Builds templates with the npm package e2b, as docs/E2B.md says that works. Each step is a
// line of JSON: its name and tier, and what went wrong if something did.
import { createRequire } from 'node:module'
import assert from 'node:assert/strict'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

const require = createRequire(process.argv[2] + '/')
const { Sandbox, Template, BuildError, waitForPort, waitForFile } = require('e2b')

async function step(name, tier, f) {
  try {
    await f()
    console.log(JSON.stringify({ name, tier }))
  } catch (e) {
    console.log(JSON.stringify({ name, tier, error: String(e?.stack ?? e) + (e?.cause ? ' ' + e.cause : '') }))
  }
}

const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'context-'))
process.on('exit', () => fs.rmSync(dir, { recursive: true }))
fs.mkdirSync(path.join(dir, 'app/sub'), { recursive: true })
fs.writeFileSync(path.join(dir, 'app/main.py'), 'print(6 * 7)\n')
fs.writeFileSync(path.join(dir, 'app/sub/data'), 'data\n')
fs.symlinkSync('data', path.join(dir, 'app/sub/link'))

const context = { fileContextPath: dir }
const template = Template(context)
  .fromTemplate('base')
  .copy('app', '/home/user/app')
  .copy('app/main.py', '/opt/one.py', { user: 'root', mode: 0o755 })
  .setEnvs({ GREETING: 'hello world' })
  .runCmd('echo "$GREETING" > said; id -un >> said; echo to the log; echo and there >&2')
  .runCmd('echo root > /etc/made && rm /etc/debian_version', { user: 'root' })
  .setWorkdir('/home/user/app')
  .runCmd('python main.py > out')
  .setStartCmd('python3 -m http.server 8000', waitForPort(8000))

const built = async (options) => {
  const lines = []
  const info = await Template.build(template, 'js', { cpuCount: 1, memoryMB: 512, onBuildLogs: (l) => lines.push(l.message), ...options })
  return { info, lines }
}

let first
await step('Template.build: fromTemplate, copy, run, env, workdir, user; its output', 'oci', async () => {
  const { info, lines } = await built()
  first = info
  for (const want of ['to the log', 'and there']) assert.ok(lines.includes(want), lines.join('\n'))
})
await step('Template.build: what was built before is not built again; tags', 'oci', async () => {
  const { info, lines } = await built({ tags: ['v2'] })
  assert.equal(info.templateId, first.templateId)
  assert.equal(lines.filter((l) => l.includes('CACHED')).length, 6, lines.join('\n'))
  assert.ok(!lines.includes('to the log'))
})
await step('Sandbox.create of what was built: files, env, directory, user, limits, start and ready command', 'oci', async () => {
  const box = await Sandbox.create('js', { metadata: { 'axo.tier': 'oci' } })
  try {
    const r = await box.commands.run('pwd; cat out ../said sub/link; stat -c "%U %a" /opt/one.py . ; cat /etc/made; ls /etc/debian_version 2>&1 | wc -l; echo $GREETING; curl -s localhost:8000/sub/data; sudo id -un; nproc')
    assert.equal(r.stdout, '/home/user/app\n42\nhello world\nuser\ndata\nroot 755\nuser 755\nroot\n1\nhello world\ndata\nroot\n1\n')
    assert.equal(await box.files.read('out'), '42\n')
    const i = await box.getInfo()
    assert.equal(i.memoryMB, 512)
  } finally {
    await box.kill()
  }
})
await step('Template.build: a step that fails, with what it wrote', 'oci', async () => {
  const lines = []
  const bad = Template(context).fromTemplate('base').runCmd('true').runCmd('echo the reason; pip install nothing-like-this; exit 3')
  const e = await Template.build(bad, 'js-bad', { onBuildLogs: (l) => lines.push(l.message) }).catch((e) => e)
  assert.ok(e instanceof BuildError, String(e))
  assert.match(e.message, /exited with status 3/)
  assert.ok(lines.includes('the reason') && lines.some((l) => l.includes('build.allow_hosts')), lines.join('\n'))
  await assert.rejects(Sandbox.create('js-bad'), /not built/)
})
await step('Template.build: from an image that is not here is refused, with what to do', 'oci', async () => {
  await assert.rejects(Template.build(Template(context).fromImage('python:3'), 'js-image'), /axo image pull python:3/)
})
await step('Template.build: fromDockerfile, fromTemplate of one’s own', 'oci', async () => {
  const t = Template(context).fromDockerfile('FROM e2bdev/base:latest\nENV A=1\nWORKDIR /srv\nCOPY app/main.py /srv/\nRUN python3 main.py > out\n')
  await Template.build(t, 'js-file:v1')
  await Template.build(Template(context).fromTemplate('js-file:v1').runCmd('cat /srv/out > /tmp/more'), 'js-more')
  const box = await Sandbox.create('js-more', { metadata: { 'axo.tier': 'oci' } })
  assert.equal((await box.commands.run('cat /tmp/more; echo $A')).stdout, '42\n1\n')
  await box.kill()
})
await step('Template: exists, tags, getTags, removeTags, buildInBackground, getBuildStatus', 'oci', async () => {
  assert.equal(await Template.exists('js'), true)
  assert.equal(await Template.exists('no-such'), false)
  await Template.assignTags('js:v2', ['stable'])
  assert.deepEqual((await Template.getTags('js')).map((t) => t.tag).sort(), ['default', 'stable', 'v2'])
  await Template.removeTags('js', 'v2')
  assert.deepEqual((await Template.getTags('js')).map((t) => t.tag).sort(), ['default', 'stable'])
  const info = await Template.buildInBackground(Template(context).fromTemplate('base').runCmd('echo later'), 'js-later')
  for (;;) {
    const s = await Template.getBuildStatus(info)
    if (s.status === 'ready') break
    assert.ok(s.status === 'building' || s.status === 'waiting', s.status)
    await new Promise((r) => setTimeout(r, 50))
  }
})
await step('templates are one’s own', 'oci', async () => {
  const other = { apiKey: process.env.OTHER_KEY }
  assert.equal(await Template.exists('js', other), false)
  await assert.rejects(Sandbox.create('js', other), /js/)
  await assert.rejects(Sandbox.create(first.templateId, other), /neither/)
  await assert.rejects(Template.getBuildStatus(first, other))
})
if (process.env.WITH_MICROVM) {
  await step('Sandbox.create of what was built, as a virtual machine', 'microvm', async () => {
    const box = await Sandbox.create('js:stable', { metadata: { 'axo.tier': 'microvm' }, requestTimeoutMs: 300_000, timeoutMs: 600_000 })
    try {
      const r = await box.commands.run('pwd; cat out ../said; echo $GREETING; curl -s localhost:8000/sub/data; sudo id -un; uname -r', { requestTimeoutMs: 120_000, timeoutMs: 120_000 })
      assert.match(r.stdout, /^\/home\/user\/app\n42\nhello world\nuser\nhello world\ndata\nroot\n.*cloud-amd64\n$/)
    } finally {
      await box.kill()
    }
  })
}
