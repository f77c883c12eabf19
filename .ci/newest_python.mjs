// Run pytest in Pyodide: the stock CPython, newer than what is installed, built for WASM.
// Usage: node newest_python.mjs PYODIDE_FOLDER WHEELS_FOLDER REPOSITORY PYTEST_ARGUMENT...
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, wheels, repository, ...options] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(join(folder, "pyodide.mjs")));
const python = await loadPyodide({ indexURL: folder });

python.FS.mkdir("/wheels");
// Pure-Python wheels are zip files; nothing is fetched from anywhere.
for (const name of readdirSync(wheels).filter((name) => name.endsWith(".whl"))) {
  python.unpackArchive(new Uint8Array(readFileSync(join(wheels, name))), "zip", {
    extractDir: "/wheels",
  });
}
python.FS.mkdir("/repository");
python.FS.mount(python.FS.filesystems.NODEFS, { root: repository }, "/repository");

python.globals.set("options", python.toPy(options));
let status = 1;
try {
  status = python.runPython(`
import os, sys
os.chdir("/repository")
sys.path[:0] = ["/repository", "/wheels"]
sys.dont_write_bytecode = True
print("CPython", sys.version.split()[0], "on", sys.platform)
import pytest
int(pytest.main(list(options)))
`);
} catch (error) {
  console.error(error.message); // Node would print the whole of Pyodide's source with it.
}
process.exit(status);
