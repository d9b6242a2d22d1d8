"""A Service for tests: GET /ready answers 200, /pid its process id, /die exits. Standard library only."""

import http.server
import os
import socketserver
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/die":
            os._exit(5)
        status = 200 if self.path in {"/ready", "/pid"} else 404
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f"{os.getpid()} {os.environ['KPAAS_LAB_REPLICA']}".encode())

    def address_string(self) -> str:
        return "local"


if __name__ == "__main__":
    if sys.argv[1:] == ["crash"]:
        sys.exit(5)
    folder, name = os.path.split(os.environ["KPAAS_LAB_LISTEN"].removeprefix("unix:"))
    os.chdir(folder)  # a socket's address has 107 bytes at most
    socketserver.ThreadingUnixStreamServer(name, Handler).serve_forever()
