# Code that an environment variable brings into every node, npm among them: it is the agent's like any other.

cat >carrier.js <<'END'
const fs = require('fs');
const home = process.env.HOME;
const say = (line) => fs.appendFileSync(__dirname + '/said.txt', line + '\n');
const attempt = (what, act) => {
	try {
		act();
		say(what + ': done');
	} catch (error) {
		say(what + ': ' + error.code);
	}
};
say('carried');
attempt('read', () => fs.readFileSync(home + '/.ssh/id_rsa'));
attempt('append', () => fs.appendFileSync(home + '/.bashrc', 'evil\n'));
attempt('start', () => require('child_process').execFileSync('/usr/bin/sudo', ['-n', 'true'], {stdio: 'ignore'}));
END

export NODE_OPTIONS="--require $PWD/carrier.js"
node -e 0
node -p 1
