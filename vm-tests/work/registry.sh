# A registry of packages as files, and a project that needs eight of them, which need two more each.
mkdir -p registry app
cat >make.js <<'INNER'
const {createHash} = require('crypto'), {execFileSync} = require('child_process'), fs = require('fs');
const put = (name, needs) => {
  const package = {name, version: '1.0.0', main: 'index.js', license: 'MIT', dependencies: Object.fromEntries(needs.map(need => [need, '^1.0.0']))};
  fs.mkdirSync('packed/package/lib', {recursive: true});
  fs.writeFileSync('packed/package/package.json', JSON.stringify(package));
  fs.writeFileSync('packed/package/index.js', `module.exports = ${JSON.stringify(name)};\n`);
  for (let part = 0; part < 10; part++)
    fs.writeFileSync(`packed/package/lib/part-${part}.js`, `exports.part = () => ${part};\n`.repeat(40));
  execFileSync('tar', ['-czf', `registry/${name}-1.0.0.tgz`, '-C', 'packed', 'package']);
  const integrity = 'sha512-' + createHash('sha512').update(fs.readFileSync(`registry/${name}-1.0.0.tgz`)).digest('base64');
  package.dist = {integrity, tarball: `http://127.0.0.1:${process.argv[2]}/${name}-1.0.0.tgz`};
  fs.writeFileSync(`registry/${name}`, JSON.stringify({name, 'dist-tags': {latest: '1.0.0'}, versions: {'1.0.0': package}}));
};
const names = [...Array(8).keys()];
for (const name of names) {
  put(`low-${name}`, []);
  put(`lower-${name}`, []);
  put(`high-${name}`, [`low-${name}`, `lower-${name}`]);
}
fs.writeFileSync('app/package.json', JSON.stringify({name: 'app', version: '1.0.0', dependencies: Object.fromEntries(names.map(name => [`high-${name}`, '1.0.0']))}));
INNER
node make.js "$PORT"
printf 'registry=http://127.0.0.1:%s/\ncache=%s/cache\naudit=false\nfund=false\nupdate-notifier=false\n' "$PORT" "$PWD" >app/.npmrc
