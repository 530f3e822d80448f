# The hosts: files by HTTPS, and a greeting by QUIC, at each address that is given.
import asyncio, functools, http.server, ssl, sys, threading
from aioquic.asyncio import serve
from aioquic.quic.configuration import QuicConfiguration

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("hosts.crt", "hosts.key")
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="served")
for address in sys.argv[1:]:
    server = http.server.ThreadingHTTPServer((address, 443), handler)
    # Each connection shakes hands in its own thread.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()

def greet(reader, writer):
    writer.write(b"reached\n")
    writer.write_eof()

async def main():
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["greet"])
    configuration.load_cert_chain("hosts.crt", "hosts.key")
    for address in sys.argv[1:]:
        await serve(address, 443, configuration=configuration, stream_handler=greet)
    open("ready", "w").close()
    await asyncio.Event().wait()

asyncio.run(main())
