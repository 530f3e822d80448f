# A client of QUIC: what the host says on one stream.
import asyncio, sys
from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration

async def main(host):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["greet"], server_name=host)
    configuration.load_verify_locations("/etc/ssl/certs/guest.crt")
    async with asyncio.timeout(30):
        async with connect(host, 443, configuration=configuration) as client:
            reader, writer = await client.create_stream()
            writer.write(b"hello")
            writer.write_eof()
            print((await reader.read()).decode())

asyncio.run(main(sys.argv[1]))
