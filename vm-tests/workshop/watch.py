# Watches loopback for questions about one name: for each that is answered, the code and the milliseconds between the
# two packets. What the client did before and after is not in it.
import socket, struct, sys

wanted = b"".join(bytes([len(label)]) + label for label in sys.argv[1].encode().split(b".")) + b"\0"
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
wire.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
wire.bind(("lo", 0))
asked = {}

def note(ports, message, at):
    key = (ports, message[:2], message[12 + len(wanted):14 + len(wanted)])
    if message[2] & 128 == 0:
        asked.setdefault(key, at)
    elif key in asked:
        print(message[3] & 15, "TC" if message[2] & 2 else "-", "%.2f" % (at - asked.pop(key)), flush=True)

print("watching", flush=True)
while True:
    frame, extra, _, origin = wire.recvmsg(2048, 256)
    # Each packet is seen on its way out and on its way in.
    if origin[2] == 4 or wanted not in frame.lower():
        continue
    seconds, nanos = struct.unpack("ll", extra[0][2][:16])
    at = seconds * 1000 + nanos / 1e6
    kind = frame[12:14]
    if kind == b"\x08\x00":
        protocol, inner = frame[23], 14 + (frame[14] & 15) * 4
    elif kind == b"\x86\xdd":
        protocol, inner = frame[20], 54
    else:
        continue
    ports = tuple(sorted(struct.unpack(">HH", frame[inner:inner + 4])))
    body = frame[inner + 8:] if protocol == 17 else frame[inner + (frame[inner + 12] >> 4) * 4:]
    # By TCP the length of each message comes first, perhaps in a packet of its own, and one packet may have several.
    messages = [body]
    while protocol == 6 and len(body) > 2 and (length := struct.unpack(">H", body[:2])[0]) <= len(body) - 2:
        messages.append(body[2:2 + length])
        body = body[2 + length:]
    for message in messages:
        if message.lower()[12:12 + len(wanted)] == wanted:
            note(ports, message, at)
