#!/usr/bin/env python3
"""Listens to events of the gateway `events`, or any WebSocket of text messages, with nothing but Python.

usage: listen.py [--path PATH] [--count N] [--seconds S] COMMAND...

Sends each COMMAND (such as 'register profiles.*.*') as a message and prints what comes, a line each, until N messages
came that answer no command, or for S seconds, or until it is ended. Where: RS_ENDPOINT (https://127.0.0.1:8092). As whom:
RS_TOKEN, or else RS_KEY (USER:PASSWORD; empty: nobody). The server's certificate is not verified, as clients of this protocol have it:
this is for a demonstration, not for use over a network.

Exit code: 0 it heard what was asked for; 1 the connection ended or the time was over before; 2 wrong use.
"""

import argparse
import base64
import json
import os
import socket
import ssl
import struct
import sys
import time
import urllib.parse


def connect(endpoint, path):
    url = urllib.parse.urlsplit(endpoint)
    plain = socket.create_connection((url.hostname, url.port or 443), timeout=30)
    stream = plain
    if url.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        stream = context.wrap_socket(plain, server_hostname=url.hostname)
    token = os.environ.get("RS_TOKEN")
    key = os.environ.get("RS_KEY", "rocketskates:r0cketsk8ts")
    credential = ""
    if token:
        credential = f"Authorization: Bearer {token}\r\n"
    elif key:
        credential = f"Authorization: Basic {base64.b64encode(key.encode()).decode()}\r\n"
    head = (
        f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
        f"{credential}\r\n"
    )
    stream.sendall(head.encode())
    read = stream.makefile("rb")
    status = read.readline().decode().strip()
    while read.readline().strip():
        pass
    if " 101 " not in status + " ":
        sys.exit(f"refused: {status}")
    return stream, read


def send(stream, opcode, payload):
    mask = os.urandom(4)
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    stream.sendall(head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload)))


def receive(read):
    """Opcode and payload of the next frame; servers send whole messages here."""
    head = read.read(2)
    if len(head) < 2:
        sys.exit("the connection ended")
    length = head[1] & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", read.read(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", read.read(8))
    return head[0] & 0x0F, read.read(length)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].removeprefix("usage: "))
    parser.add_argument("--path", default="/api/v3/ws")
    parser.add_argument("--count", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    given = parser.parse_args()
    endpoint = os.environ.get("RS_ENDPOINT", "https://127.0.0.1:8092")
    stream, read = connect(endpoint, given.path)
    end = time.monotonic() + given.seconds if given.seconds else None
    for command in given.commands:
        send(stream, 1, command.encode())
    heard = 0
    while given.count is None or heard < given.count:
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                sys.exit(0 if given.count is None else "the time is over")
            stream.settimeout(left)
        else:
            stream.settimeout(None)
        try:
            opcode, payload = receive(read)
        except (TimeoutError, ssl.SSLError, OSError):
            sys.exit(0 if given.count is None and end is not None else "the time is over")
        if opcode == 9:
            send(stream, 10, payload)
        elif opcode == 8:
            sys.exit(f"closed with {struct.unpack('!H', payload[:2])[0] if payload else 'nothing'}")
        elif opcode == 1:
            text = payload.decode()
            print(text, flush=True)
            heard += json.loads(text).get("Type") != "websocket"
    # What asks whether all has arrived comes behind it.
    stream.settimeout(0.5)
    try:
        opcode, payload = receive(read)
        if opcode == 9:
            send(stream, 10, payload)
    except (TimeoutError, ssl.SSLError, OSError):
        pass
    send(stream, 8, struct.pack("!H", 1000))


main()
