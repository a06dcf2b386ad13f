"""serverless_app.py with links to this machine allowed, since a test has no public server."""

import serverless_app
from seedvr_ui.network import Network

if __name__ == "__main__":
    serverless_app.main(Network(allows=lambda address: True, allows_port=lambda scheme, port: True))
