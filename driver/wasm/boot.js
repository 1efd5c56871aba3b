// A few names that programs for node expect. QuickJS itself has std and os.
const [code, ...args] = scriptArgs;
{
  const show = (v, depth, seen) => {
    if (typeof v === "string") return depth ? `'${v.replace(/[\\']/g, "\\$&").replace(/\n/g, "\\n")}'` : v;
    if (typeof v === "bigint") return `${v}n`;
    if (typeof v === "symbol") return v.toString();
    if (typeof v === "function") return `[${v.prototype && /^class/.test(String(v)) ? "class" : "Function"}: ${v.name || "(anonymous)"}]`;
    if (v === null || typeof v !== "object") return Object.is(v, -0) ? "-0" : String(v);
    if (v instanceof Error) return v.stack ? `${v}\n${v.stack}`.trimEnd() : String(v);
    if (v instanceof Date) return isNaN(v) ? "Invalid Date" : v.toISOString();
    if (v instanceof RegExp) return String(v);
    if (seen.includes(v)) return "[Circular]";
    const proto = Object.getPrototypeOf(v);
    const name = proto === null ? "[Object: null prototype]" : proto.constructor?.name ?? "Object";
    const list = Array.isArray(v) || ArrayBuffer.isView(v);
    if (depth > 2) return list ? "[Array]" : `[${name}]`;
    const inner = (x) => show(x, depth + 1, [...seen, v]);
    const key = (k) => (typeof k === "symbol" ? `[${k.toString()}]` : /^[\w$]+$/.test(k) ? k : inner(k));
    const some = (parts) => (parts.length > 100 ? [...parts.slice(0, 100), `... ${parts.length - 100} more`] : parts);
    let parts;
    let tag = name === "Object" || name === "Array" ? "" : `${name} `;
    if (list) {
      parts = some(Array.from(v, inner));
      if (tag) tag = `${name}(${v.length}) `;
      return parts.length ? `${tag}[ ${parts.join(", ")} ]` : `${tag}[]`;
    }
    if (v instanceof Map) [tag, parts] = [`Map(${v.size}) `, Array.from(v, ([k, x]) => `${inner(k)} => ${inner(x)}`)];
    else if (v instanceof Set) [tag, parts] = [`Set(${v.size}) `, Array.from(v, inner)];
    else if (v instanceof Promise) [tag, parts] = ["Promise ", []];
    else parts = Object.keys(v).map((k) => `${key(k)}: ${inner(v[k])}`);
    return parts.length ? `${tag}{ ${some(parts).join(", ")} }` : `${tag}{}`;
  };
  const say = (file) => (...v) => {
    file.puts(v.map((x) => show(x, 0, [])).join(" ") + "\n");
    file.flush();
  };
  const write = (file) => ({
    write(s) {
      file.puts(String(s));
      file.flush();
      return true;
    },
  });
  Object.assign(console, { log: say(std.out), info: say(std.out), debug: say(std.out), warn: say(std.err), error: say(std.err) });
  const open = (path, mode) => {
    const result = {};
    const file = path === 0 || path === "/dev/stdin" ? std.in : std.open(String(path), mode, result);
    if (!file) throw new Error(`${std.strerror(result.errno)}: ${path}`);
    return file;
  };
  const modules = {
    fs: {
      readFileSync(path, options) {
        const file = open(path, "rb");
        const as = options?.encoding ?? options;
        const all = as ? file.readAsString() : new Uint8Array(file.readAsArrayBuffer());
        if (file !== std.in) file.close();
        return all;
      },
      writeFileSync(path, data) {
        const file = open(path, "wb");
        if (typeof data === "string") file.puts(data);
        else file.write(data.buffer, data.byteOffset, data.byteLength);
        if (file.close() !== 0) throw new Error(`write: ${path}`);
      },
      existsSync: (path) => os.stat(String(path))[1] === 0,
      readdirSync: (path) => {
        const [names, errno] = os.readdir(String(path));
        if (errno) throw new Error(`${std.strerror(errno)}: ${path}`);
        return names.filter((n) => n !== "." && n !== "..").sort();
      },
    },
  };
  const { setTimeout, clearTimeout, setInterval, clearInterval } = os;
  Object.assign(globalThis, {
    scriptArgs: args,
    setTimeout: (f, ms = 0, ...a) => setTimeout(() => f(...a), ms),
    setInterval: (f, ms = 0, ...a) => setInterval(() => f(...a), ms),
    clearTimeout,
    clearInterval,
    process: {
      argv: ["node", ...args],
      env: std.getenviron(),
      platform: "wasi",
      exit: (status = 0) => std.exit(status),
      stdout: write(std.out),
      stderr: write(std.err),
    },
    require(name) {
      const found = modules[name.replace(/^node:/, "")];
      if (!found) throw new Error(`there is no module ${name}: this is QuickJS in WebAssembly, not node`);
      return found;
    },
  });
}
try {
  await std.evalScript(code, { async: true, backtrace_barrier: true });
} catch (e) {
  console.error("Uncaught", e);
  std.exit(1);
}
