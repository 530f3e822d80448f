# What the hosts are made of to which clients go: certificates of an authority of this guest's own, a repository, a
# package, keys for SSH, and a client that is linked with musl. The arguments are the hosts' names.
cat >tls.cnf <<END
[req]
distinguished_name = name
prompt = no
[name]
CN = Authority of this guest
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[host]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $(printf 'DNS:%s, ' "$@" | sed 's/, $//')
END
for who in authority hosts; do openssl ecparam -genkey -name prime256v1 -noout -out $who.key; done
openssl req -x509 -config tls.cnf -extensions authority -key authority.key -days 3650 -out authority.crt
openssl req -new -config tls.cnf -subj /CN=hosts -key hosts.key -out hosts.csr
openssl x509 -req -in hosts.csr -CA authority.crt -CAkey authority.key -days 365 -extfile tls.cnf -extensions host -out hosts.crt
cp authority.crt /etc/ssl/certs/guest.crt
cat authority.crt >>/etc/ssl/certs/ca-certificates.crt

mkdir -p served/simple/greet
echo reached >served/index.html
git init -q -b main project
echo reached >project/said.txt
git -C project add said.txt
git -C project -c user.name=Host -c user.email=host@example.org commit -q -m First
git clone -q --bare project served/project.git
git -C served/project.git update-server-info
python3 - <<'END'
import zipfile
with zipfile.ZipFile("served/simple/greet/greet-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("greet.py", "")
    wheel.writestr("greet-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n")
    wheel.writestr("greet-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("greet-1.0.dist-info/RECORD", "")
END
chown -R 1000:1000 served

mkdir -p /run/sshd
grep -q ^sshd: /etc/passwd || echo 'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
for who in host agent; do ssh-keygen -q -t ed25519 -N '' -C $who -f ssh-$who; done
cat >sshd.conf <<END
ListenAddress 93.184.216.7
ListenAddress 93.184.216.66
HostKey $PWD/ssh-host
AuthorizedKeysFile $PWD/ssh-agent.pub
PidFile none
UsePAM no
StrictModes no
END
cp ssh-agent /t/ws/clients/deploy-key
for name; do echo "$name $(cut -d' ' -f1,2 ssh-host.pub)"; done >/t/ws/clients/known
cp quic.py /t/ws/clients/
chown -R 1000:1000 /t/ws/clients

mkdir -p /usr/local/bin
musl-gcc -static -O1 -o /usr/local/bin/musl-client musl.c
