# A virtual environment, a package from an index on this machine, and what scripts commonly use.
python3 -m venv .venv
mkdir -p index/greet
python3 - <<'END'
import base64, hashlib, zipfile
files = {
    "greet/__init__.py": "def main():\n    print('greetings from the index')\n",
    "greet-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n",
    "greet-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "greet-1.0.dist-info/entry_points.txt": "[console_scripts]\ngreet = greet:main\n",
}
record = "greet-1.0.dist-info/RECORD"
digest = lambda text: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
files[record] = "".join(f"{name},sha256={digest(text)},{len(text)}\n" for name, text in files.items()) + f"{record},,\n"
with zipfile.ZipFile("index/greet/greet-1.0-py3-none-any.whl", "w") as wheel:
    for name, text in files.items():
        wheel.writestr(name, text)
END
python3 -m http.server 8001 --bind 127.0.0.1 --directory index >served.txt 2>&1 &
server=$!
until python3 -c 'import socket; socket.create_connection(("127.0.0.1", 8001)).close()' 2>/dev/null; do kill -0 "$server"; done
.venv/bin/pip install --index-url http://127.0.0.1:8001/ greet
kill "$server"
.venv/bin/greet >greeting.txt
.venv/bin/pip list >installed.txt
cat >test_all.py <<'END'
import asyncio, ctypes, multiprocessing, os, sqlite3, ssl, subprocess, tempfile, unittest

def double(number):
    return 2 * number

class Everything(unittest.TestCase):
    def test_processes(self):
        with multiprocessing.Pool(2) as pool:
            self.assertEqual(pool.map(double, [1, 2, 3]), [2, 4, 6])
    def test_database(self):
        with sqlite3.connect("data.sqlite") as database:
            database.execute("create table numbers (n)")
            database.execute("insert into numbers values (42)")
            self.assertEqual(database.execute("select n from numbers").fetchone(), (42,))
    def test_foreign(self):
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self.assertEqual(kind(lambda left, right: 7)(None, None), 7)
        self.assertEqual(ctypes.CDLL(None).getpid(), os.getpid())
    def test_loop(self):
        async def main():
            process = await asyncio.create_subprocess_exec("echo", "hello", stdout=subprocess.PIPE)
            return (await process.communicate())[0]
        self.assertEqual(asyncio.run(main()), b"hello\n")
    def test_temporary(self):
        with tempfile.TemporaryDirectory() as folder:
            os.rename(folder, folder + "-moved")
            os.rename(folder + "-moved", folder)
    def test_certificates(self):
        ssl.create_default_context()

if __name__ == "__main__":
    unittest.main()
END
.venv/bin/python test_all.py
