# npm: a package from a tarball, one from a registry on this machine, a script, a clean install.
mkdir -p greet/package local/package registry
cat >greet/package/package.json <<'END'
{"name": "greet", "version": "1.0.0", "main": "index.js", "bin": {"greet": "cli.js"}, "license": "MIT"}
END
echo "module.exports = () => 'greetings from the registry';" >greet/package/index.js
printf '#!/usr/bin/env node\nconsole.log(require("./index.js")());\n' >greet/package/cli.js
echo '{"name": "local", "version": "2.0.0", "main": "index.js", "license": "MIT", "scripts": {"postinstall": "node build.js"}}' >local/package/package.json
echo "require('fs').writeFileSync('built', 'yes');" >local/package/build.js
echo "module.exports = 'from a tarball';" >local/package/index.js
tar -czf registry/greet-1.0.0.tgz -C greet package
tar -czf registry/local-2.0.0.tgz -C local package
node - <<'END'
const crypto = require('crypto'), fs = require('fs');
const data = fs.readFileSync('registry/greet-1.0.0.tgz');
const package = JSON.parse(fs.readFileSync('greet/package/package.json'));
const integrity = 'sha512-' + crypto.createHash('sha512').update(data).digest('base64');
package.dist = {integrity, tarball: 'http://127.0.0.1:8002/greet-1.0.0.tgz'};
fs.writeFileSync('registry/greet', JSON.stringify({name: 'greet', 'dist-tags': {latest: '1.0.0'}, versions: {'1.0.0': package}}));
END
python3 -m http.server 8002 --bind 127.0.0.1 --directory registry >served.txt 2>&1 &
server=$!
until python3 -c 'import socket; socket.create_connection(("127.0.0.1", 8002)).close()' 2>/dev/null; do kill -0 "$server"; done
mkdir app
cd app
npm init -y >/dev/null
echo 'registry=http://127.0.0.1:8002/' >.npmrc
npm install --no-audit --no-fund greet ../registry/local-2.0.0.tgz
cat >app.js <<'END'
const {execFileSync} = require('child_process'), {Worker} = require('worker_threads'), fs = require('fs');
const wasm = new WebAssembly.Module(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]));
if (!WebAssembly.Module.exports(wasm)) throw 'no wasm';
let sum = 0;
for (let i = 0; i < 3e6; i++) sum += i % 7;
if (execFileSync('echo', ['child']).toString() !== 'child\n') throw 'no child';
new Worker('require("worker_threads").parentPort.postMessage(1)', {eval: true}).on('message', async () => {
  await fs.promises.writeFile('worker.txt', 'ran');
  const server = require('http').createServer((_, answer) => answer.end('answered')).listen(8003, '127.0.0.1', async () => {
    console.log(await (await fetch('http://127.0.0.1:8003/')).text(), require('greet')(), require('local'), sum);
    server.close();
  });
});
END
npm pkg set scripts.start='node app.js && greet' >/dev/null
npm run --silent start >../said.txt
rm -r node_modules
npm ci --no-audit --no-fund
kill "$server"
