// Uses the npm package e2b as with E2B itself: by names below a domain, over TLS, without
// the two URLs. Only what the names lead to is said here, in the place of a DNS server.
import { createRequire } from 'node:module'
import assert from 'node:assert/strict'
import dns from 'node:dns'
import { step, until } from './step.mjs'

const lookup = dns.lookup
const domain = process.env.E2B_DOMAIN.split(':')[0]
dns.lookup = (name, options, done) => {
  if (typeof options === 'function') [options, done] = [{}, options]
  if (!name.endsWith('.' + domain)) return lookup(name, options, done)
  process.nextTick(() => (options?.all ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4)))
}
const { Sandbox } = createRequire(process.argv[2] + '/')('e2b')

const box = await Sandbox.create({ metadata: { 'axo.tier': 'oci' }, timeoutMs: 600_000, network: { allowPublicTraffic: false } })
await step('TLS, PORT-ID.DOMAIN: programs, files, signed URLs', async () => {
  assert.equal((await box.commands.run('echo hi')).stdout, 'hi\n')
  await box.files.write('a', 'by name')
  assert.equal(await box.files.read('a'), 'by name')
  const url = await box.downloadUrl('a', { useSignatureExpiration: 600 })
  assert.ok(url.startsWith(`https://49983-${box.sandboxId}.`), url)
  assert.equal(await (await fetch(url)).text(), 'by name')
})
await step('TLS, PORT-ID.DOMAIN: getHost, private ports', async () => {
  const url = `https://${box.getHost(8123)}/a`
  const headers = { 'e2b-traffic-access-token': box.trafficAccessToken }
  assert.equal((await fetch(url)).status, 403)
  const none = await fetch(url, { headers: { ...headers, 'user-agent': 'Mozilla/5.0' } })
  assert.equal(none.status, 502)
  assert.match(await none.text(), /<html/)
  const h = await box.commands.run('exec python3 -m http.server 8123 --bind 127.0.0.1', { background: true })
  await until('the server', async () => (await fetch(url, { headers })).status === 200)
  assert.equal(await (await fetch(url, { headers })).text(), 'by name')
  await h.kill()
})
await step('the image base: sudo, user: root, files as root', async () => {
  const run = async (cmd, opts) => (await box.commands.run(cmd, opts)).stdout
  assert.equal(await run('sudo id -un; id -un; pwd'), 'root\nuser\n/home/user\n')
  assert.equal(await run('id -un; pwd; echo $HOME; touch /usr/made && stat -c %U /usr/made', { user: 'root' }), 'root\n/root\n/root\nroot\n')
  await box.files.write('/etc/of-root', 'secret', { user: 'root' })
  await box.commands.run('chmod 600 /etc/of-root', { user: 'root' })
  assert.equal((await box.files.getInfo('/etc/of-root', { user: 'root' })).owner, 'root')
  assert.equal(await box.files.read('/etc/of-root', { user: 'root' }), 'secret')
  await assert.rejects(box.files.read('/etc/of-root'), /permission/i)
  await box.files.write('beside', 'it', { user: 'root' })
  assert.equal(await run('cat /root/beside', { user: 'root' }), 'it')
  await assert.rejects(box.files.read('x', { user: 'nobody-has-this-name' }))
})
await box.kill()
