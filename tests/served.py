"""A server in a thread of the tests, and what they send it."""

import http.client
import io
import socket
import threading
import time

from PIL import Image

from ganomaly_jax.deploy import http_connections, http_process


def png(image):
    kept = io.BytesIO()
    Image.fromarray(image.squeeze(-1)).save(kept, "PNG")
    return kept.getvalue()


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Served:
    """An application on a free port, in a thread."""

    def __init__(self, app, limits):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.state = app.state.shared
        self.connections = http_connections.Connections(self.socket, limits)
        self.server = http_process.prepare(app, limits, self.connections)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": []})
        self.thread.start()

    def ask(self, method, path, body=None, headers=None):
        """(status, headers, body)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def until_ready(self):
        end = time.monotonic() + 120
        while self.ask("GET", "/readyz")[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.05)

    def close(self):
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.socket.close()
